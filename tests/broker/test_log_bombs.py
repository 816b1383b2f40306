"""A batch that unpacks to more than a consumer's library takes: looks at the log get past it.

Anybody may write one who may write to the topic: some kilobytes are enough.
"""

from pathlib import Path

from durabill.deploy.commands.order_log import read_story
from durabill.schemas import partition_for
from durabill.schemas.upload_receipt import ReceiptUpload
from durabill.stream_processors.audit.upload_proof import Log
from tests.broker import raw_kit
from tests.broker.audit_kit import settings_of
from tests.broker.traffic_kit import now_ms, segment
from tests.broker.worker_kit import deployment
from tests.property.batches import encode_record

BOMB_BYTES = 120 * 1024 * 1024
"""librdkafka takes 100 MB of zstd, and asks for the same batch again and again where it is more."""


def test_looks_at_the_log_get_past_a_bomb(bootstrap_servers: str, tmp_path: Path) -> None:
    base_ms = now_ms() - 10_000
    with deployment(bootstrap_servers, tmp_path) as deployed:
        first, last = (segment("SO1", each, base_ms, base_ms + 10 * each) for each in (1, 2))
        partition = partition_for(b"SO1", deployed.partitions)
        bomb = encode_record(0, (b"SO1", bytes(BOMB_BYTES), ()))
        deployed.send([first])
        data = raw_kit.batch([bomb], "zstd")
        assert raw_kit.append(bootstrap_servers, deployed.segments, partition, data) == 0
        deployed.send([last])
        settings = settings_of(deployed)

        story = read_story(settings, "SO1", False, lambda phase, done, total: None)
        assert [(each.offset, each.reason) for each in story.rows] == [(0, None), (2, None)]

        upload = ReceiptUpload("SO1", partition, (0, 2), ((1, 2),), "")
        source, held = Log(settings, deployed.segments, None).records(upload)
        found = [each.offset for each in held if each.key is not None]
        assert (source, found) == ("Kafka's log", [0, 2])

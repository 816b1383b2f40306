"""`durabill verify-receipt` and `durabill clients`, beside a gateway and what Kafka has of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from durabill.deploy.commands.cli import main
from durabill.producers.gateway.authority import AuthorityConfig
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.producers.gateway.client_reports import ClientReport
from durabill.producers.gateway.key_files import WatchedKeys, make_keys
from durabill.producers.gateway.key_sets import Kind, new_keys
from durabill.producers.gateway.receipts import ReceiptSigner
from durabill.producers.gateway.server import Gateway, GatewayConfig
from durabill.schemas.upload_receipt import (
    UploadReceipt,
    read_public_keys,
    read_upload_receipt,
)
from durabill.stream_processors.audit.archive.archiver import opened
from durabill.stream_processors.audit.archive.folder import ArchiveFolder
from durabill.stream_processors.audit.archive.process import ArchiveRun
from durabill.stream_processors.audit.archive.reach import live_log
from durabill.stream_processors.settings import Settings
from tests.broker.authority_kit import make_api_keys, segment, start, upload
from tests.broker.gateway_kit import call, gateway
from tests.conftest import Topics
from tests.waiting import HANG_S

Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command in this process; gives its exit code, its JSON and its errors."""
    monkeypatch.setattr("os.umask", lambda mask: 0)  # of a process of its own, not of ours
    monkeypatch.setenv("DURABILL_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr("sys.argv", ["durabill", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, errors = capfd.readouterr()
        code = ended.value.code
        assert isinstance(code, int | None)
        return code or 0, json.loads(out) if out.startswith("{") else {"text": out}, errors

    return run


class Stored(NamedTuple):
    """What one upload has brought: the receipt in a file, the keys in another, and what it says."""

    receipt: Path
    keys: Path
    said: UploadReceipt
    signer: ReceiptSigner
    url: str

    def signed(self, **changes: Any) -> Path:
        """A receipt that the gateway's key has signed, of something else."""
        (own,) = self.said.uploads
        other = msgspec.structs.replace(own, **changes)
        path = self.receipt.with_suffix(".other")
        statement = self.signer.statement(Caller("default", "", ALL_SCOPES), [other])
        path.write_text(self.signer.sign_together([statement])[0])
        return path


@pytest.fixture
def stored(bootstrap_servers: str, topics: Topics, tmp_path: Path) -> Iterator[Stored]:
    file = tmp_path / "receipts.json"
    make_keys(file, new_keys(Kind.RECEIPT))
    config = GatewayConfig(
        {"bootstrap.servers": bootstrap_servers},
        topics.segments,
        authority=AuthorityConfig(receipt_keys_file=file),
    )
    with gateway(config) as url:
        grant = start(url)
        at_ms = grant["server_timestamp_ms"]
        items = [segment(number, at_ms + 10 * number) for number in (1, 2, 3)]
        status, answer = upload(url, grant, *items)
        assert status == 200
        assert upload(url, grant, *items)[0] == 200  # repeats lie behind it
        keys = tmp_path / "keys.json"
        keys.write_text(json.dumps(call(url, "GET", "/v1/receipt-keys")[1]))
        said = read_upload_receipt(answer["receipt"], read_public_keys(keys.read_bytes()))
        receipt = tmp_path / "receipt.txt"
        receipt.write_text(answer["receipt"] + "\n")
        signer = ReceiptSigner(WatchedKeys(file, Kind.RECEIPT), topics.segments, lambda: at_ms)
        yield Stored(receipt, keys, said, signer, url)


@pytest.fixture
def on_kafka(bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABILL_BOOTSTRAP_SERVERS", bootstrap_servers)


def test_a_receipt_is_proven_by_the_log(stored: Stored, command: Command, on_kafka: None) -> None:
    for keys in (str(stored.keys), stored.url, f"{stored.url}/v1/receipt-keys"):
        code, told, _ = command("verify-receipt", str(stored.receipt), "--keys", keys, "--json")
        assert (code, told["result"]) == (0, "proven")
    (own,) = stored.said.uploads
    (found,) = told["uploads"]
    assert (found["service_order_number"], found["offsets"]) == (own.ord, list(own.off))
    assert (found["numbers"], found["records"]) == ([[1, 3]], 3)
    whole = stored.receipt.with_suffix(".json")
    whole.write_text(json.dumps({"accepted": 3, "receipt": stored.receipt.read_text().strip()}))
    code, told, _ = command("verify-receipt", str(whole), "--keys", str(stored.keys))
    assert code == 0
    assert told["text"].startswith("PROVEN\n")
    assert f"order {own.ord}, segments 1 to 3" in told["text"]


def test_one_receipt_of_many_orders(stored: Stored, command: Command, on_kafka: None) -> None:
    uploads = []
    for _ in range(5):
        grant = start(stored.url)
        at_ms = grant["server_timestamp_ms"]
        items = [segment(number, at_ms + 10 * number) for number in range(1, 21)]
        said = {name: grant[name] for name in ("service_order_number", "lease")}
        uploads.append({**said, "segments": items})
    status, answer, _ = call(stored.url, "POST", "/v1/segments", {"uploads": uploads})
    assert status == 200
    stored.receipt.write_text(json.dumps(answer))
    keys = str(stored.keys)
    code, told, _ = command("verify-receipt", str(stored.receipt), "--keys", keys, "--json")
    assert (code, [each["records"] for each in told["uploads"]]) == (0, [20] * 5)
    numbers = [each["service_order_number"] for each in uploads]
    assert [each["service_order_number"] for each in told["uploads"]] == numbers


def test_what_the_log_doesnt_have_is_not_proven(
    stored: Stored, command: Command, on_kafka: None
) -> None:
    (own,) = stored.said.uploads
    first, last = own.off
    for changes in (
        {"sha256": "0" * 64},
        {"ord": "another"},
        {"num": ((1, 4),), "cnt": 0},
        {"num": ((1, 2),), "cnt": 2},
        {"off": (first, last + 1)},
        {"off": (last, first)},
        {"off": (first + 10**9, last + 10**9)},
        {"par": (own.par + 1) % 4},
        {"par": 4},
        {"par": -1},
        {"num": ()},
    ):
        path = str(stored.signed(**changes))
        code, told, _ = command("verify-receipt", path, "--keys", str(stored.keys), "--json")
        assert (code, told["result"]) == (1, "not proven"), changes
        assert told["uploads"][0]["why_not"]
    code, told, _ = command("verify-receipt", path, "--keys", str(stored.keys))
    assert (code, told["text"].partition("\n")[0]) == (1, "NOT PROVEN")


def test_what_the_gateway_has_not_signed_is_not_proven(
    stored: Stored, command: Command, on_kafka: None
) -> None:
    token, statement = stored.receipt.read_text().strip().split("~")
    stored.receipt.write_text(f"{token[:-4]}AAAA~{statement}")
    code, told, errors = command(
        "verify-receipt", str(stored.receipt), "--keys", str(stored.keys), "--json"
    )
    assert (code, told["result"]) == (1, "not proven")
    assert "changed, or forged" in errors


def test_what_nobody_can_tell(stored: Stored, command: Command, tmp_path: Path) -> None:
    none = str(tmp_path / "none")
    receipt, keys = str(stored.receipt), str(stored.keys)
    for file, given in (
        (receipt, keys),  # neither Kafka nor an archive is known
        (none, keys),
        (keys, keys),
        (receipt, none),
        (receipt, receipt),
        (receipt, "http://127.0.0.1:1/"),
    ):
        code, told, errors = command("verify-receipt", file, "--keys", given, "--json")
        assert (code, told["result"]) == (2, "unknown"), (file, given)
        assert "nobody can tell" in errors


def test_what_kafka_has_deleted_is_proven_by_an_archive(
    stored: Stored,
    command: Command,
    bootstrap_servers: str,
    topics: Topics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, settings = (
        tmp_path / "archive",
        Settings(bootstrap_servers=bootstrap_servers, segments_topic=topics.segments),
    )
    with opened(ArchiveFolder(root), live_log(settings, 1_000)) as archiver:
        ArchiveRun(settings, archiver).once()
    receipt = "verify-receipt", str(stored.receipt), "--keys", str(stored.keys), "--json"
    monkeypatch.setenv("DURABILL_SEGMENTS_TOPIC", topics.segments)
    code, told, _ = command(*receipt, "--archive", str(root))
    assert (code, told["uploads"][0]["source"]) == (0, "the archive")
    monkeypatch.setenv("DURABILL_BOOTSTRAP_SERVERS", bootstrap_servers)
    (own,) = stored.said.uploads
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for end, source in (
        (own.off[1], "the archive and Kafka's log"),
        (own.off[1] + 1, "the archive"),
    ):
        gone = TopicPartition(topics.segments, own.par, end)
        for future in admin.delete_records([gone]).values():
            future.result(HANG_S)
        assert command(*receipt)[:1] == (2,)
        code, told, _ = command(*receipt, "--archive", str(root))
        assert (code, told["uploads"][0]["source"]) == (0, source)
    lying = str(stored.signed(sha256="1" * 64))
    keys = str(stored.keys)
    assert command("verify-receipt", lying, "--keys", keys, "--archive", str(root))[0] == 1


def test_clients_that_are_about_to_lose_data(
    command: Command,
    bootstrap_servers: str,
    topics: Topics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Gateway] = []
    begin = Gateway.__init__

    def kept(self: Gateway, config: GatewayConfig) -> None:
        begin(self, config)
        made.append(self)

    monkeypatch.setattr(Gateway, "__init__", kept)
    keys = make_api_keys(tmp_path / "api.json", "acme/anna", "acme/admin")
    kafka = {"bootstrap.servers": bootstrap_servers}
    with gateway(GatewayConfig(kafka, topics.segments, access=keys.access)) as url:
        status, answer, _ = call(url, "GET", "/v1/clients", None, keys.of("acme/anna"))
        assert (status, answer["reason"]) == (403, "INSUFFICIENT_SCOPE")
        token = tmp_path / "admin.key"
        token.write_text(keys.shown["acme/admin"] + "\n")
        asked = "clients", "--gateway", url, "--token-file", str(token)
        code, told, _ = command(*asked)
        assert (code, told["text"].startswith("No client has said anything")) == (0, True)
        reports, now_ms = made[0].authority.client_reports, made[0].authority.clock.now_ms()
        anna = Caller("acme", "anna", ALL_SCOPES, "k")
        reports.note(anna, ClientReport(name="m1", pending=3, oldest_ms=4_000), now_ms)
        assert command(*asked, "--json")[0] == 0
        reports.note(anna, ClientReport(name="m\x1b2", refused={"TOO_LATE": 7}), now_ms)
        code, told, _ = command(*asked, "--json")
        assert code == 1
        assert [each["risk"] for each in told["clients"]] == ["LOSING", "OK"]
        code, told, _ = command(*asked)
        assert (code, "TOO_LATE 7" in told["text"], "\x1b" in told["text"]) == (1, True, False)
        code, _, errors = command("clients", "--gateway", url)
        assert (code, "--token-file" in errors) == (2, True)
        assert keys.shown["acme/admin"] not in errors

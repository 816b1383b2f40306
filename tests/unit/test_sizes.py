"""How long files and classes are: short by the median; whatever is long has a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "producers", "stream_processors", "deploy")

MEDIAN_LINES_MAX = 180
FILE_LINES_MAX = 300
CLASS_LINES_MAX = 200

LONG_FILES = {
    "producers/fleet/plan.py": "one plan: its pieces draw from the same dice in a fixed order",
    "producers/fleet/truth_order.py": "the oracle of one order, read beside the rules as a whole",
    "producers/gateway/api.py": "all shapes of the API; the OpenAPI page is made of them",
    "producers/gateway/server.py": "all routes in one place",
    "producers/gateway/web_server.py": "one connection's life, where limits depend on each other",
    "producers/sdk/bounded_http.py": "one exchange with every limit in it",
    "producers/sdk/client.py": "the public class of the SDK, mostly docstrings",
    "producers/sdk/spool.py": "one file format and all that is done to it",
    "stream_processors/core/explain.py": "one order's replay, and all that it tells",
    "stream_processors/core/order.py": "the life of an order: the specification of billing",
    "stream_processors/engine/columns.py": "how a batch goes through rows and plain orders",
    "stream_processors/engine/kernel/fold.py": "one compiled loop and what it inlines",
    "stream_processors/engine/kernel/parse.py": "the bytes of a record, field by field",
    "stream_processors/engine/kernel/rows.py": "what a row is, and its arithmetic",
    "stream_processors/kafka/reading.py": "the one way in which topics are read to their ends",
    "stream_processors/ledger/consumer.py": "one loop with its order of effects",
    "stream_processors/ledger/store.py": "all SQL that the ledger writes with",
    "stream_processors/settings.py": "all settings in one place, and what is wrong with them",
    "stream_processors/worker/driver.py": "all that reaches into Faust and aiokafka",
    "stream_processors/worker/partition_writer.py": "one order of effects, and its theory",
    "stream_processors/worker/processor.py": "the order of effects of a worker",
    "deploy/demo/report.py": "one report",
    "deploy/local/postgres.py": "one server, and what root must not do for it",
    "deploy/topics.py": "the topics' settings, and how each is checked and made",
}
LONG_CLASSES = {
    "Client": "the public class of the SDK, mostly docstrings",
    "Sender": "the loop that sends: what it asks, stores, tells and waits for",
    "Spool": "one file and all that is done to it",
    "Order": "the life of an order",
    "ColumnTable": "the batch path's flow: records, what is deferred, time, questions",
    "LedgerConsumer": "one loop with its order of effects",
    "KafkaPartitionWriter": "one order of effects",
    "PlainOrders": "the plain orders' flow: records, openings, time, slots",
    "Processor": "the order of effects of a worker",
    "RowStore": "the rows' memory, and all that is asked of a slot",
    "LocalKafka": "one server: start, stop, status, cluster",
    "KafkaNode": "one broker's process and files",
}


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (ROOT / folder).rglob("*.py")


def lines_of(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize("folders", [PACKAGES, ("tests",)], ids=["product", "tests"])
def test_most_files_are_short(folders: tuple[str, ...]) -> None:
    assert median(map(lines_of, files(*folders))) <= MEDIAN_LINES_MAX


def test_long_files_have_a_reason() -> None:
    found = {
        str(path.relative_to(ROOT)) for path in files(*PACKAGES) if lines_of(path) > FILE_LINES_MAX
    }
    assert found == set(LONG_FILES)


def test_long_classes_have_a_reason() -> None:
    found = {
        node.name
        for path in files(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > CLASS_LINES_MAX
    }
    assert found == set(LONG_CLASSES)

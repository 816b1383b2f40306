"""The examples of `docs/settling.md`, billed by the engine: they come out as written."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import pytest

from durabill.schemas import (
    OrderTotal,
    SegmentEvent,
    WriterSchemas,
    decode_total,
    encode_segment,
)
from durabill.stream_processors.core.order import Order, Policy
from durabill.stream_processors.engine.batch import Chunk
from durabill.stream_processors.engine.columns import ColumnTable
from durabill.stream_processors.engine.table import IntervalTable
from tests.property.batches import encode_batch
from tests.property.histories import new_table
from tests.unit.documents import blocks, rows_of, section, text_of

BASE_MS = 1_770_000_000_000
ORDER = "SO1"
EXAMPLES = blocks("docs/settling.md", "order")
SETTINGS = {"grace": "settle_grace_ms", "idle": "idle_timeout_ms", "interim": "interim_interval_ms"}

_SEGMENT = re.compile(r"at (\d+) +segment (\d+) +(\d+)-(\d+)(  end)?")
_TOTAL = re.compile(r"at \d+ +total \d+ .*")


@dataclass
class Example:
    """One block: its policy, its records, and the lines of its totals."""

    policy: Policy
    records: list[tuple[int, SegmentEvent]] = field(default_factory=list)
    totals: list[str] = field(default_factory=list)


def read_example(info: str, content: str) -> Example:
    """Return a block as what it says; every line is a segment or a total."""
    given = dict(each.split("=") for each in info.split())
    times: dict[str, Any] = {
        SETTINGS[name]: 1_000 * int(seconds) for name, seconds in given.items()
    }
    example = Example(Policy(**times))
    for line in content.splitlines():
        found = _SEGMENT.fullmatch(line)
        if found is None:
            assert _TOTAL.fullmatch(line), line
            example.totals.append(" ".join(line.split()))
            continue
        at_s, number, start_s, end_s = map(int, found.groups()[:4])
        start_ms, end_ms = BASE_MS + 1_000 * start_s, BASE_MS + 1_000 * end_s
        event = SegmentEvent(ORDER, number, start_ms, end_ms, found[5] is not None)
        example.records.append((BASE_MS + 1_000 * at_s, event))
    return example


def bill(table: IntervalTable, example: Example) -> list[OrderTotal]:
    """Return the totals of an example's records, and of the time after them."""
    values = []
    for offset, (append_ms, event) in enumerate(example.records):
        entry = (ORDER.encode(), encode_segment(event), ())
        batch = encode_batch(offset, append_ms, [(offset, entry)])
        effects = table.fold(Chunk(offset, offset + 1, batch))
        assert not effects.dead_letters
        values += [each.value for each in effects.totals]
    policy = example.policy
    waits_ms = policy.idle_timeout_ms + policy.correction_grace_ms(5)
    values += [each.value for each in table.tick(example.records[-1][0] + waits_ms).totals]
    return [decode_total(each) for each in values]


def seconds(ms: int) -> int:
    whole, rest = divmod(ms, 1_000)
    assert rest == 0
    return whole


def line_of(total: OrderTotal) -> str:
    """Return a total as the page writes it."""
    bound_ms = total.upper_bound_ms
    parts = [
        f"at {seconds(total.settled_at_ms - BASE_MS)} total {total.revision} {total.status.value}"
        f" {seconds(total.duration_ms)} s",
        "bound unknown" if bound_ms is None else f"at most {seconds(bound_ms)} s",
    ]
    if total.missing_numbers:
        ranges = [
            str(first) if first == last else f"{first}-{last}"
            for first, last in total.missing_numbers
        ]
        parts.append(f"missing {' '.join(ranges)}")
    return ", ".join(parts)


def plain_table(policy: Policy) -> IntervalTable:
    """Return a table that folds record by record."""
    table = new_table()
    table.set_policy(policy)
    return table


def column_table(policy: Policy) -> IntervalTable:
    """Return a table that folds batches."""
    return ColumnTable(new_table().place, policy, WriterSchemas())


@pytest.mark.parametrize("make", [plain_table, column_table])
@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_an_example_comes_out_as_written(
    make: Callable[[Policy], IntervalTable], index: int
) -> None:
    example = read_example(*EXAMPLES[index])
    table = make(example.policy)
    assert example.totals == [line_of(each) for each in bill(table, example)]


def test_every_status_has_an_example() -> None:
    shown = " ".join(content for _, content in EXAMPLES)
    for status in ("COMPLETE", "INCOMPLETE", "ABANDONED", "RUNNING"):
        assert f" {status} " in shown


def test_what_the_text_says_of_the_examples() -> None:
    examples = [read_example(*each) for each in EXAMPLES]
    totals = [bill(plain_table(each.policy), each)[-1] for each in examples]
    disorder, flood = totals[1], totals[5]
    assert (disorder.duplicates, disorder.overlap_ms) == (1, 12_000)
    assert flood.numbers_after_end == len(range(2, 7))


def test_the_policy_of_the_examples_is_the_default() -> None:
    told = " ".join(text_of("docs/settling.md").split())
    default = Policy()
    assert f"`settle_grace` {default.settle_grace_ms // 1000} s" in told
    assert f"`idle_timeout` {default.idle_timeout_ms // 1000} s" in told
    day_ms = 24 * 3_600_000
    assert default.correction_window_ms == default.interim_interval_ms == day_ms
    assert "`correction_window` and `interim_interval` 24 h" in told


def test_the_phases_are_those_of_the_core() -> None:
    rows = rows_of(section("docs/settling.md", "## The phases"))
    phases = get_type_hints(Order)["phase"]
    assert [row[0] for row in rows] == [each.value for each in phases]

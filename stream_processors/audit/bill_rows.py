"""All orders' differences as one CSV file, the biggest first, though partitions come one by one.

Each partition writes its own differences down sorted; the file is what they give merged. So memory
follows the orders of the partitions at work, not those of the whole log.
"""

import csv
import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from durabill.schemas.text import harmless
from durabill.stream_processors.audit.bills import COLUMNS, Difference

_RANKS = len(Difference("", None, None).rank)


def write_rows(path: Path, differences: list[Difference]) -> None:
    """Sort the differences of one partition, and write them down for `write_csv`."""
    differences.sort(key=lambda each: each.rank)
    with path.open("w", encoding="utf-8") as file:
        for each in differences:
            file.write(json.dumps([*each.rank, *each.as_json().values()]) + "\n")


def write_csv(file: TextIO, paths: Sequence[Path]) -> None:
    """Write the differences of all partitions: all orders, the biggest difference first."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    with ExitStack() as stack:
        files = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
        for row in heapq.merge(*map(_rows_in, files), key=lambda row: row[:_RANKS]):
            number, *rest = row[_RANKS:]
            writer.writerow([harmless(number), *rest])


def _rows_in(file: TextIO) -> Iterator[list[Any]]:
    return (json.loads(line) for line in file)

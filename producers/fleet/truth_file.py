"""The fleet's truth on disk, and its comparison with the totals that really came.

A truth file is JSON lines, each with a `kind`: one `run` (what was run), an `order` for each
order (what was intended, every revision that must come, oldest first), a `dead_letter` for
each record that must be rejected, with the place it was sent to.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durabill.producers.fleet.plan import OrderPlan
from durabill.producers.fleet.truth import DeadLetter
from durabill.schemas import OrderTotal
from durabill.schemas.errors import InputError
from durabill.schemas.text import shown

DIFFERENCES_MAX = 20  # a reader wants the first few, not a million lines


class BadTruth(InputError):
    """The file is no truth file."""


def total_as_json(total: OrderTotal) -> dict[str, Any]:
    """Return the total with the fields' own names, and only what JSON has."""
    fields: dict[str, Any] = {name: getattr(total, name) for name in OrderTotal.__slots__}
    fields["status"] = total.status.value
    fields["intervals"] = [list(interval) for interval in total.intervals]
    fields["missing_numbers"] = [list(numbers) for numbers in total.missing_numbers]
    return fields


def write_truth(
    path: Path,
    run: Mapping[str, Any],
    orders: Iterable[tuple[OrderPlan, list[OrderTotal]]],
    dead_letters: Iterable[DeadLetter],
) -> None:
    """Write a truth file. `run` must have `order_prefix`, what this run's orders start with.

    A new file is for its owner alone.
    """
    with open(path, "w", encoding="utf-8", opener=_open_private) as out:

        def line(kind: str, fields: Mapping[str, Any]) -> None:
            out.write(json.dumps({"kind": kind, **fields}, ensure_ascii=False) + "\n")

        line("run", run)
        for order, totals in orders:
            intended = order.intended()
            line(
                "order",
                {
                    "service_order_number": order.number,
                    "service": [order.start_ms, order.end_ms],
                    "segments": order.segments,
                    "drift_ppm": order.drift_ppm,
                    "faults": sorted(order.faults),
                    "lost_numbers": list(order.lost_numbers),
                    "intended": None if intended is None else intended._asdict(),
                    "totals": [total_as_json(total) for total in totals],
                },
            )
        for letter in dead_letters:
            line("dead_letter", letter._asdict())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def read_truth(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a truth file as dicts, the `run` first; raise BadTruth for another's."""
    kind = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for at, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                kind = fields["kind"]
            except (ValueError, LookupError, TypeError) as error:
                raise BadTruth(f"{path} is no truth file of `durabill fleet`: line {at}") from error
            if (at == 1) != (kind == "run"):
                raise BadTruth(f"{path} is no truth file of `durabill fleet`: line {at}")
            yield fields
    if kind is None:
        raise BadTruth(f"{path} is empty: `durabill fleet` has not written it to its end")


@dataclass(slots=True)
class Comparison:
    """What was found against what must be, in numbers, and the first differences in words.

    `right`, `wrong` and `missing` count expected items; `unexpected` ones that must not be;
    `repeated` exact repeats of one item (a topic may hold them, a ledger may not); `foreign`
    those of other runs, which are left alone.
    """

    expected: int = 0
    right: int = 0
    wrong: int = 0
    missing: int = 0
    unexpected: int = 0
    repeated: int = 0
    foreign: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Return whether everything expected is there and right, and nothing else is."""
        return not (self.wrong or self.missing or self.unexpected)

    @property
    def errors(self) -> int:
        """Return how many items are wrong, missing or unexpected."""
        return self.wrong + self.missing + self.unexpected

    def explain(self) -> str:
        """Return a few lines for people: the counts and the first differences."""
        counts = f"{self.right} of {self.expected} right, {self.wrong} wrong, "
        counts += f"{self.missing} missing, {self.unexpected} unexpected"
        return "\n".join([counts, *self.differences])

    def _note(self, text: str) -> None:
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(text)


def compare(truth_path: Path, totals: Iterable[OrderTotal]) -> Comparison:
    """Compare every field of every revision of every order with the truth, each exactly once.

    `totals` in any order, from the totals topic or the ledger; revisions that were replaced
    count like the last ones. Orders that don't have the run's prefix are `foreign`.
    """
    result = Comparison()
    expected: dict[tuple[str, int], dict[str, Any]] = {}
    prefix = ""
    for line in read_truth(truth_path):
        if line["kind"] == "run":
            prefix = line["order_prefix"]
        elif line["kind"] == "order":
            for total in line["totals"]:
                expected[total["service_order_number"], total["revision"]] = total
    result.expected = len(expected)
    seen: dict[tuple[str, int], bool] = {}
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for total in totals:
        if not total.service_order_number.startswith(prefix):
            result.foreign += 1
            continue
        key = total.service_order_number, total.revision
        fields = total_as_json(total)
        if fields in found.get(key, ()):
            result.repeated += 1
            continue
        found.setdefault(key, []).append(fields)
        seen[key] = _check_total(result, expected.get(key), fields) and seen.get(key, True)
    result.right = sum(right for key, right in seen.items() if key in expected)
    result.wrong = sum(not right for key, right in seen.items() if key in expected)
    for key in expected.keys() - seen.keys():
        result.missing += 1
        result._note(
            f"order {shown(key[0])} revision {key[1]}: missing ({expected[key]['status']})"
        )
    return result


def _check_total(
    result: Comparison, expected: dict[str, Any] | None, fields: dict[str, Any]
) -> bool:
    name = f"order {shown(fields['service_order_number'])} revision {fields['revision']}"
    if expected is None:
        result.unexpected += 1
        result._note(f"{name}: must not be ({fields['status']} {fields['duration_ms']} ms)")
        return False
    wrong = [
        f"{field} is {fields[field]!r}, must be {expected[field]!r}"
        for field in fields
        if fields[field] != expected[field]
    ]
    if wrong:
        result._note(f"{name}: {'; '.join(wrong)}")
    return not wrong


def compare_dead_letters(truth_path: Path, letters: Iterable[DeadLetter]) -> Comparison:
    """Compare dead letters, by reason and place of origin, with the truth.

    A crash may write one twice: exact repeats are `repeated`. All letters must be of this run:
    one that isn't expected is `unexpected`, as its order can't be told from its bytes.
    """
    expected = {
        (line["partition"], line["offset"]): line["reason"]
        for line in read_truth(truth_path)
        if line["kind"] == "dead_letter"
    }
    result = Comparison(expected=len(expected))
    seen = Counter(letters)
    result.repeated = seen.total() - len(seen)
    for reason, partition, offset in seen:
        wanted = expected.get((partition, offset))
        if wanted == reason:
            result.right += 1
            continue
        if wanted is None:
            result.unexpected += 1
        else:
            result.wrong += 1
        result._note(f"{partition}/{offset}: {reason}, must be {wanted or 'no dead letter'}")
    places = {(letter.partition, letter.offset) for letter in seen}
    for place in expected.keys() - places:
        result.missing += 1
        result._note(f"{place[0]}/{place[1]}: no dead letter, must be {expected[place]}")
    return result

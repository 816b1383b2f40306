"""The leakage as plain values, as tables in text, and as CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from durabill.schemas import Status
from durabill.schemas.text import counted, harmless, human_ms, human_time, shown
from durabill.stream_processors.audit.leakage import Group, Leakage, Suspect
from durabill.stream_processors.audit.unreported import Unreported

HOURS_SHOWN = 24
NAME_CHARS_MAX = 80
"""So much of an order number the tables show. One in a dead letter has any length."""

CSV_COLUMNS = (
    *("service_order_number", "partition", "revision", "status", "proven_ms"),
    *("may_be_missing_ms", "at_least_in_doubt_ms", "gap_ms", "missing_numbers"),
    *("missing_before_the_first", "numbers_after_end", "dead_letters", "dead_letters_ms"),
    "reasons",
)


def as_json(found: Leakage) -> dict[str, Any]:
    """Return all of it."""
    return {
        "all": _group(found.all_orders),
        "by_status": {name: _group(found.by_status[name]) for name in _statuses(found)},
        "by_partition": {
            str(each): _group(found.by_partition[each]) for each in sorted(found.by_partition)
        },
        "missing_by_hour": [
            {"hour_ms": hour_ms, "missing_numbers": found.missing_by_hour[hour_ms]}
            for hour_ms in sorted(found.missing_by_hour)
        ],
        "first_number_is_not_1": {
            **_group(found.first_is_not_one),
            "missing_before_the_first": found.missing_first,
        },
        "complete_with_gaps": _group(found.complete_with_gaps),
        "numbers_after_end": _group(found.after_end),
        "numbers_made_up": _group(found.made_up),
        "dead_letters": {
            reason: {"count": each.count, "time_ms": each.time_ms}
            for reason, each in sorted(found.by_reason.items())
        },
        "orders_with_only_dead_letters": found.only_letters,
        "dead_letters_of_further_orders": found.letters_untold,
        "opened_without_total": _opened(found.unreported),
        "look_at_first": [suspect_as_json(each) for each in found.suspects],
    }


def _opened(found: Unreported) -> dict[str, Any]:
    return {
        "opened_orders": found.opened,
        **asdict(found.all_orders),
        "by_tenant": {name: asdict(group) for name, group in sorted(found.by_tenant.items())},
        "look_at_first": [
            {
                **each._asdict(),
                "never_reported": found.is_over(each),
                "age_ms": found.now_ms - each.server_timestamp_ms,
            }
            for each in found.orders
        ],
    }


def suspect_as_json(each: Suspect) -> dict[str, Any]:
    """Return an order to look at."""
    case = each.case
    bound = None if case is None or case.upper_bound_ms is None else case.doubt_ms
    return {
        "service_order_number": each.number,
        "partition": None if case is None else case.partition,
        "revision": None if case is None else case.revision,
        "status": None if case is None else case.status,
        "proven_ms": 0 if case is None else case.duration_ms,
        "may_be_missing_ms": bound,
        "at_least_in_doubt_ms": case.doubt_ms if case is not None and bound is None else None,
        "gap_ms": 0 if case is None else case.gap_ms,
        "missing_numbers": 0 if case is None else case.missing,
        "missing_before_the_first": 0 if case is None else case.missing_first,
        "numbers_after_end": 0 if case is None else case.after_end,
        "dead_letters": each.letters.count,
        "dead_letters_ms": each.letters.time_ms,
        "reasons": list(each.reasons),
    }


def as_csv(found: Leakage) -> str:
    """Return the orders to look at as CSV.

    An order number that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for each in found.suspects:
        values = suspect_as_json(each)
        values["service_order_number"] = harmless(shown(each.number))
        values["reasons"] = "; ".join(each.reasons)
        writer.writerow("" if values[name] is None else values[name] for name in CSV_COLUMNS)
    return text.getvalue()


def lines_of(found: Leakage) -> Iterator[str]:
    """Yield the report for people, a line each."""
    every = found.all_orders
    yield from _by_status(found, every)
    yield ""
    yield (
        f"Repeats: {every.repeat_ratio:.2%} of the records that count,"
        f" {every.overlap_ratio:.2%} of the time that they report"
    )
    for words, group in (
        ("First number isn't 1, so the beginning is missing", found.first_is_not_one),
        ("COMPLETE, but with gaps in its time", found.complete_with_gaps),
        ("Numbers above the end number", found.after_end),
        ("Numbers that were made up or are damaged", found.made_up),
    ):
        more = f", {found.missing_first:,} numbers" if group is found.first_is_not_one else ""
        gaps = f", gaps of {human_ms(group.gap_ms)}" if group.gap_ms else ""
        yield f"{words}: {counted(group.orders, 'order')}{more if group.orders else ''}{gaps}"
    yield from _letters(found)
    yield from _unreported(found.unreported)
    yield from _missing(found)
    if found.suspects:
        yield from ("", f"{counted(len(found.suspects), 'order')} to look at first")
        yield from _table(
            ("order", "status", "proven", "may be missing", "dead letters", "why"),
            [_suspect(each) for each in found.suspects],
        )


def _statuses(found: Leakage) -> list[str]:
    return [each.value for each in Status if each.value in found.by_status]


def _group(group: Group) -> dict[str, Any]:
    return {
        **{name: getattr(group, name) for name in Group.__slots__},
        "repeat_ratio": round(group.repeat_ratio, 6),
        "overlap_ratio": round(group.overlap_ratio, 6),
    }


def _by_status(found: Leakage, every: Group) -> Iterator[str]:
    names = ("", "orders", "proven", "may be missing", "no bound", "of these in doubt")
    rows = [(name, found.by_status[name]) for name in _statuses(found)]
    yield from _table(
        (*names, "numbers missing"),
        [
            (
                name,
                f"{group.orders:,}",
                human_ms(group.proven_ms),
                human_ms(group.may_be_missing_ms),
                f"{group.unbounded_orders:,}",
                f"{human_ms(group.in_doubt_ms)} at least" if group.unbounded_orders else "",
                f"{group.missing_numbers:,}",
            )
            for name, group in [*rows, ("all", every)]
        ],
    )


def _letters(found: Leakage) -> Iterator[str]:
    if not found.by_reason:
        yield "Dead letters: none"
        return
    yield from ("", "Dead letters by reason, each record of the log once")
    by_count = sorted(found.by_reason.items(), key=lambda each: (-each[1].count, each[0]))
    rows = [(shown(name), f"{each.count:,}", human_ms(each.time_ms)) for name, each in by_count]
    yield from _table(("reason", "records", "time in them"), rows)
    if found.only_letters:
        words = counted(found.only_letters, "order")
        yield f"{words} with dead letters and no total: nothing of it was billed"
    if found.letters_untold:
        yield f"{found.letters_untold:,} dead letters of further orders aren't told by order"


def _unreported(found: Unreported) -> Iterator[str]:
    every = found.all_orders
    if not found.opened:
        return
    if not every.orders:
        yield f"Opened, and without a total: none of {counted(found.opened, 'order')}"
        return
    yield from ("", f"Opened, and without a total, of {counted(found.opened, 'order')}")
    tenants = sorted(
        found.by_tenant.items(), key=lambda each: (-each[1].never_reported, -each[1].orders, each)
    )
    yield from _table(
        ("tenant", "orders", "never reported", "under way, or may be reported yet"),
        [
            (
                shown(name),
                f"{group.orders:,}",
                f"{group.never_reported:,}",
                f"{group.orders - group.never_reported:,}",
            )
            for name, group in [*tenants, ("all", every)]
        ],
    )
    over = [each for each in found.orders if found.is_over(each)]
    if over:
        yield from ("", f"{counted(len(over), 'order')} that nobody reported, the oldest first")
        yield from _table(
            ("order", "tenant", "service", "opened", "accepted until"),
            [
                (
                    _short(each.number),
                    shown(each.tenant),
                    shown(each.service),
                    human_time(each.server_timestamp_ms),
                    human_time(each.accept_until_ms),
                )
                for each in over
            ],
        )


def _missing(found: Leakage) -> Iterator[str]:
    if not found.missing_by_hour:
        return
    yield from ("", "Numbers missing by partition")
    yield from _table(
        ("partition", "orders", "of these with numbers missing", "numbers missing"),
        [
            (
                str(at),
                f"{each.orders:,}",
                f"{each.orders_with_missing:,}",
                f"{each.missing_numbers:,}",
            )
            for at, each in sorted(found.by_partition.items())
        ],
    )
    hours = sorted(found.missing_by_hour.items(), key=lambda each: (-each[1], each[0]))
    some = f", the {HOURS_SHOWN} worst of {len(hours):,}" if len(hours) > HOURS_SHOWN else ""
    yield from ("", f"Numbers missing by hour (UTC; estimated by their place in the order){some}")
    yield from _table(
        ("hour", "numbers missing"),
        [(human_time(at)[:16], f"{count:,}") for at, count in sorted(hours[:HOURS_SHOWN])],
    )


def _suspect(each: Suspect) -> tuple[str, ...]:
    case, letters = each.case, each.letters
    doubt = ""
    if case is not None:
        doubt = human_ms(case.doubt_ms)
        if case.upper_bound_ms is None:
            doubt = f"no bound, {doubt} at least" if case.doubt_ms else "no bound"
    return (
        _short(each.number),
        "no total" if case is None else case.status,
        "" if case is None else human_ms(case.duration_ms),
        doubt,
        f"{letters.count:,}: {human_ms(letters.time_ms)}" if letters.count else "",
        ", ".join(each.reasons),
    )


def _short(number: str) -> str:
    text = shown(number[:NAME_CHARS_MAX])
    return text if len(text) <= NAME_CHARS_MAX >= len(number) else f"{text[:NAME_CHARS_MAX]}…"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table in columns of blanks; the first column and the last one stand left."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    last = len(names) - 1
    lefts = {0, last} if names[last] == "why" else {0}
    for row in (names, *rows):
        cells = (
            cell.ljust(width) if at in lefts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()

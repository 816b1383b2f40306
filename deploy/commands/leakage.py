"""`durabill leakage`: where time, and so money, may be lost."""

import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.ask_workers import NOT_KNOWN, ask_workers, known_workers
from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    TOPICS,
    located,
    quiet_kafka,
    with_settings,
    without_password,
)
from durabill.deploy.terminal import Progress, counted, emit, progress_bars, say, shown

if TYPE_CHECKING:
    from durabill.stream_processors.audit.leakage import Leakage
    from durabill.stream_processors.audit.unreported import OpenedOrder
    from durabill.stream_processors.dead_letters.letters import DeadLetter
    from durabill.stream_processors.settings import Settings


class Source(StrEnum):
    """Where the totals are read."""

    TOPIC = "topic"
    LEDGER = "ledger"


ASKED_MAX = 1_000
"""For so many orders workers are asked until when they are accepted."""


@with_settings(*CONNECTION, *TOPICS, "ledger_dsn", "worker_urls")
def leakage(
    settings: "Settings",
    source: Annotated[Source, typer.Option(help="Where the totals are read.")] = Source.TOPIC,
    top: Annotated[int, typer.Option(min=1, help="Tell so many orders to look at first.")] = 20,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write those orders to this file, as CSV.")
    ] = None,
    as_json: AS_JSON = False,
) -> None:
    """Tell where time may be lost: from every order's latest total, and from the dead letters.

    Told are: orders that never ended, by status; the proven time, and how much more it may be at
    most; orders of which no such bound is known; numbers missing, by hour and by partition; orders
    whose first number isn't 1; how much was reported more than once; dead letters by reason, with
    the time that they report; orders of which there are dead letters alone; orders that
    were opened and have no total, by tenant: those whose segments are no longer accepted were never
    reported; workers are asked whether their leases were renewed. The orders to look at first are
    those where the most time may be lost. Nothing here is an error: what is missing may still come.
    Reads the topics of totals and orders, as committed, or the ledger, and the dead letters.

        durabill leakage --top 50 --csv look-at.csv
        durabill leakage --source ledger --json | jq '.all.may_be_missing_ms'
    """
    from durabill.stream_processors.audit.leakage import Leakage
    from durabill.stream_processors.audit.leakage_report import as_csv, lines_of
    from durabill.stream_processors.audit.leakage_report import as_json as report_as_json
    from durabill.stream_processors.audit.report_file import check_report_path, write_report_file
    from durabill.stream_processors.audit.unreported import Unreported

    if csv is not None:
        check_report_path(csv)
    if source is Source.TOPIC:
        settings = located(settings, "bootstrap_servers", role="leakage")
    else:
        settings = located(settings, "bootstrap_servers", "ledger_dsn", role="letters")
    renewals = Renewals(settings)
    unreported = Unreported(top, time.time_ns() // 10**6, accepted_until_ms=renewals.until_ms)
    found = Leakage(top, unreported)
    with progress_bars(quiet=as_json) as progress:
        _add_letters(settings, found)
        if source is Source.TOPIC:
            where, unreadable = (
                f"topic {settings.totals_topic}",
                _add_topic(settings, found, progress),
            )
        else:
            where, unreadable = f"the ledger at {without_password(settings.ledger_dsn)}", 0
            _add_ledger(settings, found)
        found.finish()
    if csv is not None:
        write_report_file(csv, as_csv(found))
        say(f"wrote the orders to look at first to {shown(str(csv))}")
    if as_json:
        told = {"unreadable_totals": unreadable, "renewals_not_known": renewals.unknown}
        emit({"source": where, **told, **report_as_json(found)})
        return
    print(f"Every order's latest total in {where}")
    print("\n".join(lines_of(found)))
    _note(unreadable, renewals.unknown)


def _note(unreadable: int, unknown: int) -> None:
    if unknown:
        words = counted(unknown, "order")
        say(f"note: no worker could say of {words} whether its lease was renewed")
    if unreadable:
        words = counted(unreadable, "record")
        say(f"note: {words} of the topic can't be read as totals, and count as none")


class Renewals:
    """Asks workers until when segments of an order are accepted, by its lease as it is now."""

    def __init__(self, settings: "Settings") -> None:
        self.unknown = 0
        """Of how many orders nobody could say."""
        self._urls, self._token = known_workers(settings), settings.worker_token
        self._left = ASKED_MAX if self._urls else 0

    def until_ms(self, opened: "OpenedOrder") -> int:
        """Return it of one order; as of its opening where nobody can say."""
        if not self._left:
            self.unknown += 1
            return opened.accept_until_ms
        self._left -= 1
        state, why_not = ask_workers(self._urls, self._token, opened.number)
        if state is None:
            if why_not != NOT_KNOWN:
                self.unknown, self._left = self.unknown + 1, 0  # the next wouldn't be told either
            return opened.accept_until_ms
        now = state.opened
        if now is None or (now.tenant, now.server_timestamp_ms) != (
            opened.tenant,
            opened.server_timestamp_ms,
        ):
            return opened.accept_until_ms  # another life
        return max(opened.accept_until_ms, now.accept_until_ms)


def _add_letters(settings: "Settings", found: "Leakage") -> None:
    from durabill.stream_processors.dead_letters.letters import list_dead_letters

    for letter in list_dead_letters(quiet_kafka(settings), settings.dead_letters_topic):
        found.add_letter(letter.reason or "(no reason)", *_order_of(letter))


def _order_of(letter: "DeadLetter") -> tuple[str | None, int]:
    """Return which order a dead letter is of, None if that can't be told, and the time in it.

    Key and value have to agree: otherwise anybody could make another's order look so.
    """
    from durabill.schemas import OWN_SCHEMA_ONLY, BadRecord
    from durabill.schemas.limits import SEGMENT_LENGTH_MAX_MS

    time_ms, key = 0, letter.key
    try:
        raw = OWN_SCHEMA_ONLY.read(letter.value)
        if raw[0] != key:
            return None, 0
        time_ms = min(max(raw[3] - raw[2], 0), SEGMENT_LENGTH_MAX_MS)
    except BadRecord:
        pass  # by its key alone
    try:
        return None if key is None else key.decode(), time_ms
    except UnicodeDecodeError:
        return None, time_ms


def _add_topic(settings: "Settings", found: "Leakage", progress: Progress) -> int:
    """Take in the totals of a topic, partition by partition; return how many can't be read."""
    from durabill.schemas import BadTotal, decode_total
    from durabill.stream_processors.kafka.reading import common_partition_count, read_topic

    kafka, topic, unreadable = quiet_kafka(settings), settings.totals_topic, 0
    for partition in range(common_partition_count(kafka, topic, settings.orders_topic)):
        mine = frozenset({partition})
        for opened in _openings(settings, partition, progress):
            found.unreported.add_opening(opened)
        for _, _, message in read_topic(kafka, topic, partitions=mine, progress=progress):
            value: Any = message.value()
            try:
                found.add_total(decode_total(value if isinstance(value, bytes) else None))
            except BadTotal:
                unreadable += 1
        found.settle()
    return unreadable


def _openings(settings: "Settings", partition: int, progress: Progress) -> "Iterator[OpenedOrder]":
    """Yield the openings that a partition of the orders topic has."""
    from durabill.schemas import BadRecord, is_opening, read_opening
    from durabill.stream_processors.audit.unreported import OpenedOrder
    from durabill.stream_processors.kafka.openings import place_of
    from durabill.stream_processors.kafka.reading import read_topic

    kafka, topic, mine = quiet_kafka(settings), settings.orders_topic, frozenset({partition})
    for _, _, message in read_topic(kafka, topic, partitions=mine, progress=progress):
        key: Any = message.key()
        value: Any = message.value()
        source_offset, _ = place_of(message)
        if source_offset is None or not is_opening(value):
            continue  # not a worker's; the audit tells of it
        try:
            opened = read_opening(key, value)
        except BadRecord:
            continue
        times_ms = opened.server_timestamp_ms, opened.accept_until_ms
        number = opened.service_order_number
        yield OpenedOrder(number, opened.tenant, opened.service, *times_ms, source_offset)


def _add_ledger(settings: "Settings", found: "Leakage") -> None:
    from durabill.stream_processors.audit.unreported import OpenedOrder
    from durabill.stream_processors.ledger.lookups import latest_summaries, opened_orders

    found.unreported.opened, without_total = opened_orders(settings.ledger_dsn)
    for row in without_total:
        found.unreported.count(OpenedOrder(*row))
    for total in latest_summaries(settings.ledger_dsn):
        found.add_total(total)
        found.settle()

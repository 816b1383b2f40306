"""`durabill dead-letters`: list what was rejected, and send repaired records back."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    located,
    quiet_kafka,
    with_settings,
)
from durabill.deploy.terminal import (
    answer,
    emit,
    human_time,
    say,
)

if TYPE_CHECKING:
    from durabill.schemas import SegmentEvent
    from durabill.stream_processors.dead_letters.letters import DeadLetter
    from durabill.stream_processors.dead_letters.resend import Resent
    from durabill.stream_processors.settings import Settings

letters_app = typer.Typer(invoke_without_command=True)

_REASONS = (
    "NOT_AVRO UNKNOWN_SCHEMA KEY_MISMATCH BAD_ORDER_NUMBER BAD_BUSINESS_DATA_NUMBER "
    "BAD_TIME_SEQUENCE IN_THE_FUTURE TOO_LONG TOO_LATE WRONG_PARTITION BAD_BATCH"
)
Reason = Annotated[str | None, typer.Option(help=f"Only this reason: {_REASONS}.")]


@letters_app.callback()
@with_settings(*CONNECTION, "dead_letters_topic")
def dead_letters(
    settings: "Settings",
    context: typer.Context,
    reason: Reason = None,
    since_minutes: Annotated[
        float | None, typer.Option(min=0, help="Only those of the last so many minutes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    as_json: AS_JSON = False,
) -> None:
    """List rejected records with their reasons; send repaired ones back with `resend`.

    Each line has the dead letter's place (PARTITION/OFFSET in the dead letters topic, which is
    what `resend` takes), its reason, where the record came from, and what is wrong. With --json,
    one object a line, key and value in hex.

        durabill dead-letters --reason TOO_LATE --limit 20
        durabill dead-letters resend 0/17 --end-ms 1735689660000
    """
    if context.invoked_subcommand is not None:
        return
    import time

    from durabill.stream_processors.dead_letters.letters import list_dead_letters

    settings = located(settings, "bootstrap_servers", role="letters")
    _check_reason(reason)
    since_ms = None if since_minutes is None else int((time.time() - since_minutes * 60) * 1000)
    count = 0
    letters = list_dead_letters(
        quiet_kafka(settings),
        settings.dead_letters_topic,
        limit=limit,
        reason=reason,
        since_ms=since_ms,
    )
    for letter in letters:
        count += 1
        answer(_letter_as_json(letter), _letter_as_text(letter), as_json)
    say(f"{count} dead letters")


@letters_app.command()
@with_settings(*CONNECTION, "dead_letters_topic", "segments_topic", "schema_registry_url")
def resend(
    settings: "Settings",
    places: Annotated[
        list[str] | None, typer.Argument(help="Dead letters to send: PARTITION/OFFSET ...")
    ] = None,
    reason: Reason = None,
    order_number: Annotated[str | None, typer.Option(help="Repair: the order number.")] = None,
    number: Annotated[int | None, typer.Option(help="Repair: the business data number.")] = None,
    start_ms: Annotated[int | None, typer.Option(help="Repair: the start.")] = None,
    end_ms: Annotated[int | None, typer.Option(help="Repair: the end.")] = None,
    end_identifier: Annotated[
        bool | None, typer.Option("--end/--no-end", help="Repair: the end identifier.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="With --reason: also those that were rejected again."),
    ] = False,
    as_json: AS_JSON = False,
) -> None:
    """Send dead letters back into the segments topic: as they were, or repaired.

    As they were makes sense once the cause is mended (a schema registered, a longer correction
    window); all of one reason go with --reason, each record of the log once. What has been sent
    back already is told and stays, whether it was rejected again (with --again it goes once more)
    or not. A place that is given is sent in any case; a record that comes twice does no harm. A
    repair is for one record: what is given replaces that field.

        durabill dead-letters resend 2/40 2/41
        durabill dead-letters resend --reason UNKNOWN_SCHEMA
        durabill dead-letters resend 0/17 --number 4 --no-end
    """
    from durabill.stream_processors.dead_letters.resend import resend as send

    changes = {
        "service_order_number": order_number,
        "business_data_number": number,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "end_identifier": end_identifier,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    chosen = [_place(text) for text in places or []]
    _check_reason(reason)
    if bool(chosen) == bool(reason):
        raise typer.BadParameter("give either places (PARTITION/OFFSET) or --reason")
    if changes and len(chosen) != 1:
        raise typer.BadParameter("a repair is for one record: give one place")
    if again and not reason:
        raise typer.BadParameter("--again is for --reason; a place is sent in any case")
    settings = located(settings, "bootstrap_servers", role="resend")
    kafka, topic = quiet_kafka(settings), settings.dead_letters_topic
    if reason:
        _resend_all(settings, reason, again, as_json)
        return
    for place in chosen:
        repaired = _repaired(settings, place, changes) if changes else None
        sent = send(kafka, topic, *place, segments_topic=settings.segments_topic, repaired=repaired)
        _tell_sent(place, sent, as_json)
    say(f"{len(chosen)} records sent back")


def _resend_all(settings: "Settings", reason: str, again: bool, as_json: bool) -> None:
    """Send back whatever was rejected for a reason, each origin once; tell the rest apart."""
    from durabill.stream_processors.dead_letters.resend import send_back
    from durabill.stream_processors.dead_letters.review import State, review

    kafka, topic = quiet_kafka(settings), settings.dead_letters_topic
    goes = {State.NEW, State.REJECTED_AGAIN} if again else {State.NEW}
    stays: Counter[tuple[State, str]] = Counter()

    def chosen() -> "Iterator[DeadLetter]":
        for each in review(kafka, topic, segments_topic=settings.segments_topic, reason=reason):
            if each.state in goes:
                yield each.letter
                continue
            stays[each.state, each.letter.reason] += 1
            if as_json:
                place = list(each.letter.place)
                emit({"from": place, "state": each.state.value, "reason": each.letter.reason})

    count = 0
    for letter, sent in send_back(kafka, topic, chosen(), settings.segments_topic):
        count += 1
        _tell_sent(letter.place, sent, as_json)
    say(f"{count} records sent back")
    for (state, newest), number in sorted(stays.items()):
        say(f"{number} not sent: {_WHY_NOT[state.value].format(reason=newest)}")


_WHY_NOT = {
    "SENT_BACK": "sent back before, and not rejected since",
    "REJECTED_AGAIN": "sent back before, and rejected again, last as {reason}; --again sends them",
    "CUT": "{reason}, and too large to be kept whole; give each one's place and a repair",
}


def _tell_sent(place: tuple[int, int], sent: "Resent", as_json: bool) -> None:
    text = f"{place[0]}/{place[1]} is at {sent.topic} {sent.partition}/{sent.offset} now"
    answer({"from": list(place), "to": asdict(sent)}, text, as_json)


def _check_reason(reason: str | None) -> None:
    if reason is not None and reason not in _REASONS.split():
        raise typer.BadParameter(f"{reason} is none of {_REASONS}")


def _place(text: str) -> tuple[int, int]:
    partition, _, offset = text.partition("/")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise typer.BadParameter(f"{text} is no place; a place is PARTITION/OFFSET, such as 0/17")
    return int(partition), int(offset)


def _repaired(
    settings: "Settings", place: tuple[int, int], changes: dict[str, Any]
) -> "SegmentEvent":
    """Return the dead letter's segment with the changes; raise BadRecord if it is illegal still."""
    from durabill.deploy.commands.run import writer_schemas
    from durabill.schemas import BadRecord, SegmentEvent
    from durabill.stream_processors.dead_letters.letters import find_dead_letter

    names = list(SegmentEvent.__slots__)
    fields: dict[str, Any] = {}
    if len(changes) < len(names):
        letter = find_dead_letter(quiet_kafka(settings), settings.dead_letters_topic, *place)
        try:
            raw = writer_schemas(settings).read(letter.value)
            fields = dict(zip(names, raw, strict=True))
            fields["service_order_number"] = raw[0].decode(errors="replace")
        except BadRecord as error:
            missing = [name for name in names if name not in changes]
            raise typer.BadParameter(
                f"the record can't be read ({error}), so all fields must be given;"
                f" {', '.join(missing)} are not"
            ) from error
    return SegmentEvent(**{**fields, **changes})


def _letter_as_json(letter: "DeadLetter") -> dict[str, Any]:
    def text(value: bytes | None) -> str | None:
        return None if value is None else value.hex()

    return {
        **{name: getattr(letter, name) for name in type(letter).__slots__},
        "key": text(letter.key),
        "value": text(letter.value),
        "headers": [[name, text(value)] for name, value in letter.headers],
    }


def _letter_as_text(letter: "DeadLetter") -> str:
    source = f"{letter.source_topic} {letter.source_partition}/{letter.source_offset}"
    key = "no key" if letter.key is None else repr(letter.key.decode(errors="replace"))
    place = f"{letter.partition}/{letter.offset}"
    when = human_time(letter.append_ms)
    return f"{place:>8}  {when}  {letter.reason:24}  {source}  {key}  {letter.detail}"

"""`durabill dead-letters`: list what was rejected, and send repaired records back."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from durabill.deploy.commands.common import (
    AS_JSON,
    CONNECTION,
    REGISTRY,
    located,
    quiet_kafka,
    with_settings,
    writer_schemas,
)
from durabill.deploy.terminal import (
    answer,
    counted,
    emit,
    human_time,
    plain,
    say,
    shown,
)
from durabill.schemas.errors import Reason as DeadLetterReason

if TYPE_CHECKING:
    from durabill.schemas import SegmentEvent
    from durabill.stream_processors.dead_letters.letters import DeadLetter
    from durabill.stream_processors.dead_letters.resend import Resent
    from durabill.stream_processors.settings import Settings

letters_app = typer.Typer(invoke_without_command=True)

REASONS = [reason.value for reason in DeadLetterReason]
_REASONS = ", ".join(REASONS)
Reason = Annotated[str | None, typer.Option(help=f"Only this reason: {_REASONS}.")]
SinceMinutes = Annotated[
    float | None, typer.Option(min=0, help="Only those of the last so many minutes.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many.")]


@letters_app.callback()
@with_settings(*CONNECTION, "dead_letters_topic")
def dead_letters(
    settings: "Settings",
    context: typer.Context,
    reason: Reason = None,
    since_minutes: SinceMinutes = None,
    limit: Limit = None,
    as_json: AS_JSON = False,
) -> None:
    """List rejected records with their reasons; send repaired ones back with `resend`.

    Without a command it lists them, as `list` does. Each line has the dead letter's place
    (PARTITION/OFFSET in the dead letters topic, which is what `resend` takes), its reason, where
    the record came from, its key, and what is wrong. With --json, one object a line, key and value
    in hex.

        durabill dead-letters --reason TOO_LATE --limit 20
        durabill dead-letters resend 0/17 --end-ms 1735689660000
    """
    command = context.invoked_subcommand
    if command is None:
        _list(settings, reason, since_minutes, limit, as_json)
        return
    given = [name for name, value in context.params.items() if value not in (None, False)]
    if given:
        flag = "json" if given[0] == "as_json" else given[0].replace("_", "-")
        raise typer.BadParameter(f"--{flag} goes after `{command}`")


@letters_app.command("list")
@with_settings(*CONNECTION, "dead_letters_topic")
def list_command(
    settings: "Settings",
    reason: Reason = None,
    since_minutes: SinceMinutes = None,
    limit: Limit = None,
    as_json: AS_JSON = False,
) -> None:
    """List rejected records with their reasons, as `dead-letters` without a command does.

    durabill dead-letters list --since-minutes 60
    """
    _list(settings, reason, since_minutes, limit, as_json)


def _list(
    settings: "Settings",
    reason: str | None,
    since_minutes: float | None,
    limit: int | None,
    as_json: bool,
) -> None:
    import time

    from durabill.stream_processors.dead_letters.letters import list_dead_letters

    _check_reason(reason)
    settings = located(settings, "bootstrap_servers", role="letters")
    since_ms = None
    if since_minutes is not None:
        since_ms = int(max(0.0, time.time() - since_minutes * 60) * 1000)
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
    say(counted(count, "dead letter"))


@letters_app.command()
@with_settings(*CONNECTION, "dead_letters_topic", "segments_topic", *REGISTRY)
def resend(
    settings: "Settings",
    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PARTITION/OFFSET]...", help="Places of the dead letters to send."),
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
    say(f"{counted(len(chosen), 'record')} sent back")


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
    say(f"{counted(count, 'record')} sent back")
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
    if reason is not None and reason not in REASONS:
        raise typer.BadParameter(f"--reason {shown(reason)} is none of {_REASONS}")


_PLACE = re.compile(r"[0-9]{1,9}/[0-9]{1,18}")


def _place(text: str) -> tuple[int, int]:
    partition, _, offset = text.partition("/")
    if not _PLACE.fullmatch(text):
        raise typer.BadParameter(
            f"{shown(text)} is no place; a place is PARTITION/OFFSET, such as 0/17"
        )
    return int(partition), int(offset)


def _repaired(
    settings: "Settings", place: tuple[int, int], changes: dict[str, Any]
) -> "SegmentEvent":
    """Return the dead letter's segment with the changes; raise BadRecord if it is illegal still."""
    from durabill.schemas import BadRecord, SegmentEvent
    from durabill.stream_processors.dead_letters.letters import find_dead_letter

    names = list(SegmentEvent.__slots__)
    fields: dict[str, Any] = {}
    if len(changes) < len(names):
        letter = find_dead_letter(quiet_kafka(settings), settings.dead_letters_topic, *place)
        try:
            raw = writer_schemas(settings).read(letter.value)
            fields = dict(zip(names, raw, strict=True))
            # Not with replacements: it would be another order's.
            fields["service_order_number"] = changes.get("service_order_number") or raw[0].decode()
        except UnicodeDecodeError as error:
            raise typer.BadParameter(
                "the record's order number is no UTF-8: give the right one by --order-number"
            ) from error
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
    source = f"{shown(letter.source_topic)} {letter.source_partition}/{letter.source_offset}"
    key = "no key" if letter.key is None else _shown_key(letter.key)
    place = f"{letter.partition}/{letter.offset}"
    when = human_time(letter.append_ms)
    reason, detail = plain(letter.reason), plain(letter.detail)
    return f"{place:>8}  {when}  {reason:24}  {source}  {key}  {detail}"


def _shown_key(key: bytes) -> str:
    """Return a key as text; one that is no UTF-8 as bytes, so that no two look alike."""
    try:
        return shown(key.decode())
    except UnicodeDecodeError:
        return repr(key)

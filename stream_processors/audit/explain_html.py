"""An order explained on one page, for a dispute: for a reader who doesn't know the engine.

The page is one file without scripts, and loads nothing. It can be printed, mailed and kept.
"""

from collections.abc import Sequence

from durabill.schemas.text import counted, human_ms, human_time, shown
from durabill.stream_processors.audit.explain_glossary import WORDS
from durabill.stream_processors.audit.explain_svg import picture_of
from durabill.stream_processors.audit.markup import (
    PAGE_STYLE,
    Content,
    Markup,
    element,
    joined,
    page,
    table,
)
from durabill.stream_processors.audit.story import Given, Life, Story
from durabill.stream_processors.audit.story_rows import Row
from durabill.stream_processors.audit.words import (
    Published,
    bound_words,
    cause_words,
    missing_words,
    opening_lines,
    origin_words,
    pieces_words,
    policy_lines,
    standing_words,
    verdict_words,
)

GAPS_SHOWN = 100


def html_of(story: Story, topic: str, rows_max: int, published: Published | None) -> str:
    """Return the page: with at most `rows_max` records and revisions, 0: all.

    `topic` is the segments' one; `published` says which revisions were found where totals are
    published, None if nobody looked.
    """
    parts: list[Markup | None] = [
        element("p", "Durabill: one order explained from the log", class_="muted"),
        element("h1", f"Order {shown(story.number)}"),
        *(element("p", line) for line in opening_lines(story)),
        _verdict(story),
        *(element("p", f"Note: {note}.", class_="bad-text") for note in story.notes),
        *_strangers(published),
        element("h2", "The order in one picture"),
        element("p", _PICTURE),
        element("figure", picture_of(story)),
    ]
    for life in reversed(story.lives):
        parts += _life(story, life, rows_max, published)
    parts += [
        element("h2", "Every record that was received"),
        element("p", _RECORDS),
        *_records(story, rows_max),
        element("h2", "Rules that held"),
        *(element("p", line) for line in policy_lines(story.basis)),
        element("p", _RULES),
        element("h2", "What the words mean"),
        element("dl", *(_word(name, meaning) for name, meaning in WORDS)),
        element(
            "footer",
            f"Made from {topic}, partition {story.partition}, as it was at"
            f" {human_time(story.clock_ms)} by the broker's clock. All times are UTC. Anybody who"
            " can read the log can make this page again and compare.",
        ),
    ]
    return page(f"Order {shown(story.number)} explained", PAGE_STYLE, *parts)


_PICTURE = (
    "Each blue bar is a record of the client's: one piece of time, as it reported it. What adds"
    " time is dark; what others have reported already is light, and isn't counted again. The green"
    " bar is what is billed: each millisecond once. Hatched is what nobody reported. Below: when"
    " the records arrived, in which state the order was, and when a total was given."
)
_RECORDS = (
    "In the sequence in which the broker stored them. The place is partition/offset: a record keeps"
    " it for good. `Arrived` is the broker's time, which no client can set."
)
_RULES = (
    "These four times decide when an order gives a total, and until when a record still counts."
    " They are recorded beside the log, each with the offset from which on it held."
)


def _word(name: str, meaning: str) -> Markup:
    return joined(element("dt", name), element("dd", meaning), by="")


def _verdict(story: Story) -> Markup:
    if not story.lives:
        rejected = [each for each in story.rows if not each.is_opening]
        words = f"{counted(len(rejected), 'record')} with this number came, and none of them counts"
        if not rejected:
            words = "No record with this number came"
        words += "; nothing is billed."
        return element("div", element("p", words), class_="box bad")
    life = story.lives[-1]
    given = [each for each in story.given.values() if each.life == life.life]
    latest = given[-1] if given else None
    sentences = [element("p", f"{human_ms(life.union.measure)} are proven", class_="big")]
    sentences.append(element("p", _so(life, latest)))
    missing = missing_words(life)
    sentences += [element("p", sentence) for sentence in missing]
    if not missing:
        words = "Nothing is missing: the end was seen, and every number from 1 to the greatest."
        sentences.append(element("p", words))
    if len(story.lives) > 1:
        words = f"The number was used {len(story.lives)} times. This is its latest use."
        sentences.append(element("p", words))
    is_good = latest is not None and latest.status == "COMPLETE" and not missing
    return element("div", *sentences, class_=f"box {'good' if is_good else 'doubt'}")


def _so(life: Life, latest: Given | None) -> str:
    removed_ms = life.length_sum_ms - life.union.measure
    words = f"{counted(life.accepted, 'record')} of {human_ms(life.length_sum_ms)} together"
    if removed_ms:
        words += f", less {human_ms(removed_ms)} that several of them report"
    if latest is None:
        return f"{words}. No total has been given yet."
    words += f". The latest total is revision {latest.revision}, {latest.status}"
    if latest.duration_ms != life.union.measure:
        words += f", of {human_ms(latest.duration_ms)}; records that came later are not in it yet"
    if latest.upper_bound_ms is None:
        words += ". What the order may have lasted at most isn't known"
    elif latest.upper_bound_ms != latest.duration_ms:
        words += f". It has lasted {human_ms(latest.upper_bound_ms)} at most"
    return words + "."


def _strangers(published: Published | None) -> list[Markup]:
    if published is None:
        return []
    return [
        element(
            "p",
            f"Note: {published.source} has a revision {total.revision}, {total.status}, of"
            f" {human_ms(total.duration_ms)} that the log doesn't give by the rules below.",
            class_="bad-text",
        )
        for total in published.strangers
    ]


def _life(
    story: Story, life: Life, rows_max: int, published: Published | None
) -> list[Markup | None]:
    name = f", life {life.life} of this number" if len(story.lives) > 1 else ""
    facts: list[tuple[Content, ...]] = [
        ("Proven time", human_ms(life.union.measure)),
        ("First start reported", human_time(life.started_ms)),
        ("Last end reported", human_time(life.ended_ms)),
        ("Records taken in", f"{life.accepted:,}"),
        ("Their lengths together", human_ms(life.length_sum_ms)),
        ("Reported more than once", human_ms(life.length_sum_ms - life.union.measure)),
        ("In no record", human_ms(sum(after - first for first, after in life.gaps))),
        ("Number of the end", "not seen" if life.end_number is None else f"{life.end_number:,}"),
        ("State now", standing_words(life)),
    ]
    given = [each for each in story.given.values() if each.life == life.life]
    states = [each for each in story.states if each.life == life.life]
    state_rows = [(human_time(each.at_ms), each.phase, cause_words(each, story)) for each in states]
    return [
        element("h2", f"What it comes to{name}"),
        table(("", ""), facts, class_="facts"),
        *_gaps(life),
        element("h3", "Totals that the log gives (revisions)"),
        _revisions(story, given, rows_max, published),
        element("h3", "States that it was in"),
        table(("from (UTC)", "state", "because"), *_few(state_rows, rows_max)),
    ]


def _gaps(life: Life) -> list[Markup]:
    gaps = life.gaps
    if not gaps:
        return []
    rows: list[tuple[Content, ...]] = [
        (human_time(start_ms), human_time(end_ms), human_ms(end_ms - start_ms))
        for start_ms, end_ms in gaps[:GAPS_SHOWN]
    ]
    found = [
        element("h3", "Time between start and end that is in no record"),
        table(("from (UTC)", "to (UTC)", "length"), rows, right=(2,)),
    ]
    if len(gaps) > GAPS_SHOWN:
        words = f"and {counted(len(gaps) - GAPS_SHOWN, 'more gap')}"
        found.append(element("p", words, class_="muted"))
    return found


def _revisions(
    story: Story, given: list[Given], rows_max: int, published: Published | None
) -> Markup:
    if not given:
        return element("p", "None yet.")
    names = (
        *("no.", "status", "proven", "at most", "gaps", "numbers missing", "given at (UTC)"),
        *("because", *(("published",) if published else ()), "evidence digest"),
    )
    rows: list[tuple[Content, ...]] = [
        (
            each.revision,
            element("span", each.status, class_="n"),
            human_ms(each.duration_ms),
            bound_words(each.upper_bound_ms),
            human_ms(each.gap_ms),
            f"{each.missing_numbers:,}",
            human_time(each.settled_at_ms),
            cause_words(each, story),
            *((published.says(each),) if published else ()),
            element("code", each.digest),
        )
        for each in given
    ]
    found = table(names, *_few(rows, rows_max), right=(0, 2, 3, 4, 5))
    if published is None:
        return found
    return joined(element("p", f"Looked up in {published.source}.", class_="muted"), found)


def _records(story: Story, rows_max: int) -> list[Markup]:
    has_lives = len(story.lives) > 1
    rows = [_record(row, has_lives) for row in _chosen(story.rows, rows_max)]
    found = [table(_RECORD_NAMES, rows, right=(2, 4), wrap=(5, 8))]
    if hidden := len(story.rows) - len(rows):
        words = f"{hidden:,} records in between are left out here (--rows)."
        found.append(element("p", words, class_="muted"))
    return found


_RECORD_NAMES = (
    *("place", "arrived (UTC)", "number", "reported from (UTC)", "length", "verdict"),
    *("adds", "counted already", "origin"),
)


def _record(row: Row, has_lives: bool) -> tuple[Content, ...]:
    length_ms = None
    if row.start_ms is not None and row.end_ms is not None:
        length_ms = row.end_ms - row.start_ms
    arrived = human_time(row.append_ms)
    if row.arrival_ms != row.append_ms:
        arrived += f" (clock of its partition: {human_time(row.arrival_ms)})"
    verdict = verdict_words(row)
    if has_lives and row.life:
        verdict += f" [life {row.life}]"
    is_bad = row.reason is not None
    taken = row.counts and length_ms is not None
    return (
        f"{row.partition}/{row.offset}",
        arrived,
        "" if row.number is None else f"{row.number}{' (end)' if row.end_identifier else ''}",
        "" if row.start_ms is None else human_time(row.start_ms),
        "" if length_ms is None else f"{length_ms:,} ms",
        element("span", verdict, class_="bad-text") if is_bad else verdict,
        pieces_words(row.gained, length_ms or 0) if taken else "",
        pieces_words(row.counted_before, length_ms or 0) if taken else "",
        origin_words(row),
    )


def _chosen(rows: list[Row], rows_max: int) -> list[Row]:
    if not rows_max or len(rows) <= rows_max:
        return rows
    return [*rows[: rows_max - rows_max // 2], *rows[len(rows) - rows_max // 2 :]]


def _few(rows: Sequence[tuple[Content, ...]], rows_max: int) -> tuple[list[tuple[Content, ...]]]:
    """Return the first and the last rows, and between them one that says how many are left out."""
    if not rows_max or len(rows) <= rows_max:
        return ([*rows],)
    tail = rows_max // 2
    blanks = ("",) * (len(rows[0]) - 2)
    told = ("…", f"{len(rows) - rows_max:,} more (--rows)", *blanks)
    return ([*rows[: rows_max - tail], told, *rows[len(rows) - tail :]],)

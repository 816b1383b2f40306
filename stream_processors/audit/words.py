"""What an order's story says in words: causes, what is missing, how a life stands."""

from collections.abc import Sequence

from durabill.schemas.text import counted, human_ms, human_time
from durabill.stream_processors.audit.story import FORGOTTEN, Given, Life, StateChange, Story
from durabill.stream_processors.core.order import DEADLINE_OF, Deadline

RANGES_SHOWN = 20


def cause_words(change: Given | StateChange, story: Story | None = None) -> str:
    """Return what caused a revision, or a state: a record, or a deadline."""
    place = str(change.offset) if story is None else f"{story.partition}/{change.offset}"
    is_total = isinstance(change, Given)
    if change.deadline is None:
        return f"record {place} completed it" if is_total else f"by record {place}"
    if change.deadline is Deadline.INTERIM_INTERVAL:
        return "interim_interval passed while it ran on"
    if change.deadline is Deadline.CORRECTION_WINDOW:
        return "the correction window is over: no record of it can be accepted any more"
    return f"{change.deadline} passed, counted from record {place}"


def number_ranges(ranges: Sequence[tuple[int, int]], ranges_max: int = RANGES_SHOWN) -> str:
    """Return number ranges as people write them: 3, 5-9."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    more = f" and {len(texts) - ranges_max} more" if len(texts) > ranges_max else ""
    return ", ".join(texts[:ranges_max]) + more


def standing_words(life: Life) -> str:
    """Return where a life stands at the end of the log."""
    if life.state is None:
        assert life.forgotten_at_ms is not None
        return f"{FORGOTTEN} after {human_time(life.forgotten_at_ms)}"
    deadline = DEADLINE_OF[life.state.phase]
    return f"{life.state.phase}; {deadline} passes at {human_time(life.state.deadline_ms)}"


def missing_words(life: Life) -> list[str]:
    """Return what is missing of a life, a sentence each; nothing where all is there."""
    found = []
    missing = life.missing_numbers
    if missing:
        count = sum(last - first + 1 for first, last in missing)
        found.append(
            f"{counted(count, 'business data number')} of 1 to {life.numbers.last():,} never"
            f" arrived: {number_ranges(missing)}."
        )
    if life.end_number is None:
        found.append("No record with the end identifier arrived: nobody knows when it ended.")
    elif after := life.numbers.count_from(life.end_number + 1):
        found.append(
            f"{counted(after, 'business data number')} above the end number"
            f" {life.end_number:,} arrived all the same."
        )
    if gaps := life.gaps:
        gap_ms = sum(end_ms - start_ms for start_ms, end_ms in gaps)
        found.append(
            f"{human_ms(gap_ms)} between start and end are in no record,"
            f" in {counted(len(gaps), 'gap')}."
        )
    return found


def bound_words(upper_bound_ms: int | None) -> str:
    """Return what the duration can be at most, if all that is missing were found."""
    return "not known" if upper_bound_ms is None else human_ms(upper_bound_ms)

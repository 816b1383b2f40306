"""Guesses the unit of a time that can't be in milliseconds, for the text of a refusal."""

from durabill.schemas.errors import BadRecord, Reason

_UNITS = ((10**9, "seconds"), (10**15, "microseconds"), (10**18, "nanoseconds"))
"""An instant from 2001 to 2255 has so many of its unit, up to nine times as many."""

_TIMES_MAX = 9  # the end of 64 bits lies beyond: it stands for "never" rather than for an instant


def unit_hint(*times: float) -> str:
    """Return what to add to a refusal: which unit a time seems to have, or nothing.

    In milliseconds these would be some day of January to April 1970, or a time after the year
    33000. Depends on the times alone, so that a record is always refused in the same words.
    """
    for time in times:
        for least, name in _UNITS:
            if least <= time < _TIMES_MAX * least:
                return f"; {time:.0f} looks like {name}, and times are milliseconds since the epoch"
    return ""


def refused_time(reason: Reason, detail: str, start_ms: int, end_ms: int) -> BadRecord:
    """Return the refusal of a segment for its times, with the unit that they seem to have."""
    return BadRecord(reason, detail + unit_hint(start_ms, end_ms))

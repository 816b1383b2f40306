"""An order's story as plain values, for JSON: records, lives, states, revisions, policies."""

from dataclasses import asdict
from typing import Any

import msgspec

from durabill.stream_processors.audit.story import Given, Life, StateChange, Story
from durabill.stream_processors.audit.words import Published
from durabill.stream_processors.engine.policies import describe_history


def explained(story: Story, topic: str, published: Published | None) -> dict[str, Any]:
    """Return all that the log tells of an order; `published` says what was found elsewhere."""
    source = None if published is None else published.source
    return {
        "service_order_number": story.number,
        "segments_topic": topic,
        "partition": story.partition,
        "clock_ms": story.clock_ms,
        "policy": describe_history(story.basis.history),
        "policy_assumed_because": story.basis.assumed_because or None,
        "openings": openings(story),
        "records": [asdict(each) for each in story.rows],
        "lives": [_whole_life(story, each) for each in story.lives],
        "revisions": [
            {
                **revision(each),
                "upper_bound_ms": each.upper_bound_ms,
                "gap_ms": each.gap_ms,
                "missing_numbers_count": each.missing_numbers,
                "digest": each.digest,
                "source_offset": each.source_offset,
                "published": None if published is None else published.has(each),
            }
            for each in story.given.values()
        ],
        "looked_up_in": source,
        "published_otherwise": []
        if published is None
        else [
            {"revision": each.revision, "status": each.status, "digest": each.digest}
            for each in published.strangers
        ],
        "notes": story.notes,
    }


def openings(story: Story) -> list[dict[str, Any]]:
    """Return the openings of the order's number, those that were refused as well."""
    return [
        {
            "partition": each.partition,
            "offset": each.offset,
            "arrival_ms": each.arrival_ms,
            **each.opened._asdict(),
            "attributes": dict(each.opened.attributes),
            "reason": each.reason,
            "detail": each.detail,
            "repeats": each.repeats,
            "extensions": each.extensions,
            "accept_until_ms": each.accept_until_ms or each.opened.accept_until_ms,
            "lapsed_at_ms": each.lapsed_at_ms,
        }
        for each in story.openings
    ]


def life(each: Life) -> dict[str, Any]:
    """Return a life in short."""
    return {
        "life": each.life,
        "first_offset": each.first_offset,
        "last_offset": each.last_offset,
        "accepted": each.accepted,
        "intervals": [list(interval) for interval in each.union],
        "duration_ms": each.union.measure,
        "forgotten_at_ms": each.forgotten_at_ms,
        "state": None if each.state is None else msgspec.to_builtins(each.state),
    }


def _whole_life(story: Story, each: Life) -> dict[str, Any]:
    return {
        **life(each),
        "started_ms": each.started_ms,
        "ended_ms": each.ended_ms,
        "overlap_ms": each.length_sum_ms - each.union.measure,
        "gaps": [list(gap) for gap in each.gaps],
        "missing_numbers": [list(found) for found in each.missing_numbers],
        "end_number": each.end_number,
        "states": [
            {"from_ms": change.at_ms, "state": change.phase, **cause(change)}
            for change in story.states
            if change.life == each.life
        ],
    }


def revision(given: Given) -> dict[str, Any]:
    """Return a revision in short."""
    return {
        "revision": given.revision,
        "status": given.status,
        "duration_ms": given.duration_ms,
        "settled_at_ms": given.settled_at_ms,
        "life": given.life,
        **cause(given),
    }


def cause(change: Given | StateChange) -> dict[str, Any]:
    """Return what caused a revision, or a state: a record, or a deadline and what had set it."""
    return {"caused_by": change.deadline or "record", "caused_by_offset": change.offset}

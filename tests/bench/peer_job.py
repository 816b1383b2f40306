"""What the peers written in Python do to an order: the worker's job in plain Python.

Only fastavro is needed, for this runs in the virtual environments of the peers too. The state is
a dictionary of plain values. Left out, in favour of the peers: deadlines, dead letters, the
correction window. An order settles when its end and all its numbers are there.
"""

import hashlib
import io
import json
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

_SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


def _load(name: str) -> tuple[Any, bytes]:
    schema = json.loads((_SCHEMAS / name).read_text(encoding="utf-8"))
    mark = fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")
    return fastavro.parse_schema(schema), b"\xc3\x01" + bytes.fromhex(mark)


_SEGMENT, _SEGMENT_HEADER = _load("segment_event.avsc")
_TOTAL, _TOTAL_HEADER = _load("order_total.avsc")

State = dict[str, Any]


def decode(value: bytes) -> dict[str, Any]:
    """Return a segment's fields; raise ValueError if the bytes are no segment."""
    if not value.startswith(_SEGMENT_HEADER):
        raise ValueError("no segment")
    body = io.BytesIO(value)
    body.seek(10)
    record: Any = fastavro.schemaless_reader(body, _SEGMENT, None)
    fields: dict[str, Any] = record
    return fields


def new_state() -> State:
    """Return the state of an order of which nothing is known."""
    return {
        "intervals": [],  # flat: start, end, start, end ...; sorted, not touching
        "numbers": [],  # flat: first, after last, first, after last ...
        "accepted": 0,
        "length": 0,
        "end": 0,
        "started": 1 << 62,
        "ended": 0,
        "revision": 0,
        "settled": False,
        "digest": "",
    }


def fold(
    state: State, segment: dict[str, Any], partition: int, offset: int, now_ms: int
) -> bytes | None:
    """Take a segment into the state; return the encoded total that this gives, if any."""
    start, end, number = segment["start_ms"], segment["end_ms"], segment["business_data_number"]
    state["accepted"] += 1
    state["length"] += end - start
    state["started"] = min(state["started"], start)
    state["ended"] = max(state["ended"], end)
    changed = _add(state["numbers"], number, number + 1)
    if start != end:
        changed |= _add(state["intervals"], start, end)
    if segment["end_identifier"] and number > state["end"]:
        state["end"] = number
        changed = True
    if changed:
        state["settled"] = False
    numbers = state["numbers"]
    if state["settled"] or not state["end"] or numbers[0] != 1 or len(numbers) != 2:
        return None
    state["settled"] = True
    state["revision"] += 1
    return _total(state, segment["service_order_number"], partition, offset, now_ms)


def _add(pieces: list[int], start: int, end: int) -> bool:
    """Add [start, end) to sorted, disjoint, flat pieces; tell whether it added anything."""
    if pieces and start == pieces[-1]:
        pieces[-1] = end
        return True
    if not pieces or start > pieces[-1]:
        pieces += (start, end)
        return True
    inside = bisect_right(pieces, start)
    if inside % 2 and end <= pieces[inside]:
        return False
    low = bisect_left(pieces, start)
    high = bisect_right(pieces, end)
    pieces[low:high] = [start] * (low % 2 == 0) + [end] * (high % 2 == 0)
    return True


def _total(state: State, order: str, partition: int, offset: int, now_ms: int) -> bytes:
    intervals, numbers = _pairs(state["intervals"]), _pairs(state["numbers"])
    duration = sum(end - start for start, end in intervals)
    segments = sum(after - first for first, after in numbers)
    evidence = (
        "durabill-evidence-1",
        order,
        ",".join(f"{start}-{end}" for start, end in intervals),
        ",".join(f"{first}-{after - 1}" for first, after in numbers),
        str(state["end"]),
    )
    text = "".join(f"{line}\n" for line in evidence)
    previous, state["digest"] = state["digest"], hashlib.sha256(text.encode()).hexdigest()
    out = io.BytesIO()
    out.write(_TOTAL_HEADER)
    total = {
        "service_order_number": order,
        "revision": state["revision"],
        "status": "COMPLETE",
        "duration_ms": duration,
        "upper_bound_ms": duration,
        "started_ms": state["started"],
        "ended_ms": state["ended"],
        "intervals": [{"start_ms": start, "end_ms": end} for start, end in intervals],
        "end_number": state["end"],
        "missing_numbers": [],
        "segments": segments,
        "duplicates": state["accepted"] - segments,
        "overlap_ms": state["length"] - duration,
        "gap_ms": state["ended"] - state["started"] - duration,
        "numbers_after_end": sum(max(0, b - max(a, state["end"] + 1)) for a, b in numbers),
        "digest": state["digest"],
        "previous_digest": previous,
        "source_partition": partition,
        "source_offset": offset,
        "settled_at_ms": now_ms,
    }
    fastavro.schemaless_writer(out, _TOTAL, total)
    return out.getvalue()


def _pairs(pieces: list[int]) -> list[tuple[int, int]]:
    return list(zip(pieces[::2], pieces[1::2], strict=True))


def mark(name: str, records: int) -> None:
    """Tell the bench how far we are; see `processes.Child.wait_mark`."""
    print(json.dumps({"mark": name, "records": records}), flush=True)

"""What an answer says of the segments of an upload, in the form of its route. Pure."""

import json
from dataclasses import replace

from durabill.producers.conformance.answers import Answer, of_json, problem
from durabill.producers.conformance.exchange import Exchange, Told
from durabill.producers.conformance.shapes import Request

Stamps = dict[str, object]


def told_of_all(exchange: Exchange, request: Request, told: list[Told], stamps: Stamps) -> Answer:
    """Say of each segment what becomes of it; the route for one order can only say: stored."""
    if request.is_single:
        numbers = [each.number for each in exchange.segments]
        receipts = [
            {"business_data_number": each, "partition": 0, "offset": each, "append_ms": None}
            for each in numbers
        ]
        verdicts = [{"business_data_number": each, "counts": True} for each in numbers]
        return of_json({"accepted": len(numbers), "receipts": receipts, "segments": verdicts})
    uploads, at = [], 0
    for upload in request.uploads:
        count = len(upload.segments)
        errors = [
            {
                **item(exchange, at + index, index, exchange.reasons.get(at + index, "QUOTA")),
                "final": each is Told.REFUSED,
                "stored": False,
            }
            for index, each in enumerate(told[at : at + count])
            if each is not Told.STORED
        ]
        answer: dict[str, object] = {
            "service_order_number": upload.order,
            "count": count,
            "stored": count - len(errors),
        }
        uploads.append({**answer, "errors": errors} if errors else answer)
        at += count
    return of_json({**stamps, "uploads": uploads})


def item(exchange: Exchange, at: int, index: int, reason: str) -> dict[str, object]:
    """Return what is said of a segment; `index` is its place in its upload."""
    return {
        "index": index,
        "business_data_number": exchange.segments[at].number,
        "reason": reason,
        "detail": "by the conformance server",
    }


def refused_single(exchange: Exchange, bad: int) -> Answer:
    """Refuse a segment, by the route for one order: nothing of the request is stored."""
    whole = problem(422, "BAD_SEGMENTS", "1 segment breaks the rules; nothing was stored")
    errors = [item(exchange, bad, bad, "CONFORMANCE")]
    body = {**json.loads(whole.body), "errors": errors, "error_count": 1}
    return Answer(422, json.dumps(body).encode(), whole.content_type)


def about_fewer(exchange: Exchange, request: Request, stamps: Stamps) -> Answer:
    """Speak of one segment fewer than were sent, as if all was well."""
    told = [Told.STORED] * len(exchange.segments)
    body = json.loads(told_of_all(exchange, request, told, stamps).body)
    if request.is_single:
        body["accepted"] -= 1
        del body["receipts"][-1], body["segments"][-1]
    elif body["uploads"][-1]["count"] <= 1:
        del body["uploads"][-1]
    else:
        body["uploads"][-1]["count"] -= 1
        body["uploads"][-1]["stored"] -= 1
    return of_json(body)


def as_text(exchange: Exchange, request: Request, stamps: Stamps) -> Answer:
    """Say that all is well, but as text: no gateway does."""
    told = [Told.STORED] * len(exchange.segments)
    said = told_of_all(exchange, request, told, stamps)
    return replace(said, content_type="text/plain")


def about_nothing(request: Request) -> Answer:
    """Have null wherever a verdict is expected, as many as were sent."""
    if not request.is_single:
        return of_json({"uploads": [None] * len(request.uploads)})
    nulls = [None] * len(request.uploads[0].segments)
    return of_json({"accepted": len(nulls), "receipts": nulls, "segments": nulls})


def about_another(exchange: Exchange, request: Request, stamps: Stamps) -> Answer:
    """Speak of another order, or of another segment, as if all was well."""
    told = [Told.STORED] * len(exchange.segments)
    body = json.loads(told_of_all(exchange, request, told, stamps).body)
    if request.is_single:
        for each in (body["receipts"][-1], body["segments"][-1]):
            each["business_data_number"] += 1
    else:
        body["uploads"][-1]["service_order_number"] += "-ANOTHER"
    return of_json(body)

"""The gateway that is played: what it knows, and what it answers. Pure: clocks are arguments."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate

from durabill.producers.conformance.answers import ELSEWHERE, Answer, Cut, of_json, page, problem
from durabill.producers.conformance.exchange import Exchange, Kind, Log, Opened, Told
from durabill.producers.conformance.script import Script
from durabill.producers.conformance.shapes import (
    Bad,
    Request,
    check_head,
    order_in,
    read_single,
    read_start,
    read_uploads,
)

PACED_SEGMENTS = 2
"""So many new segments are taken of an upload that goes well, until all trouble has come."""
SINGLE_SEGMENTS = 4
"""So many segments an upload for a single order may have until then."""
WISH_S = 1
SLOW_S = 1.0
STEP_MS = 3_600_000
LEASE_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What is played: `has_tokens` and `has_leases` where clients must show them."""

    interval_ms: int
    has_tokens: bool
    has_leases: bool


class Player:
    """Answers requests one at a time, and writes them down in `log`.

    `monotonic_s` and `wall_ms` are the clocks; `on_token` is told each token, once only it is good.
    """

    def __init__(
        self,
        log: Log,
        script: Script,
        rules: Rules,
        *,
        monotonic_s: Callable[[], float],
        wall_ms: Callable[[], float],
        on_token: Callable[[str], None],
    ) -> None:
        self._log = log
        self._script = script
        self._rules = rules
        self._monotonic_s = monotonic_s
        self._wall_ms = wall_ms
        self._on_token = on_token
        self._tokens = 0
        self._clock_id = 1
        self._limit: int | None = None  # segments of a request, since the 413
        self._stored: set[tuple[str, int]] = set()
        self._refused_keys: set[tuple[str, int]] = set()
        self._next_token()

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[Exchange, Answer]:
        """Return what was written down of a request, and its answer. Names in `headers` are low."""
        exchange = Exchange(Kind.OTHER, self._monotonic_s())
        exchange.token = headers.get("authorization", "").removeprefix("Bearer ")
        exchange.idempotency_key = headers.get("idempotency-key", "")
        self._log.exchanges.append(exchange)
        try:
            answer = self._routed(method, path, headers, body, exchange)
        except Bad as bad:
            exchange.wrong = f"{method} {path}: {bad}"
            answer = problem(bad.status, bad.reason, str(bad))
        exchange.status = answer.status if answer.cut is Cut.NEVER else None
        return exchange, answer

    def _routed(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, exchange: Exchange
    ) -> Answer:
        if path == ELSEWHERE:
            exchange.kind = Kind.ELSEWHERE
            return of_json({"accepted": 0})
        if (method, path) == ("GET", "/v1/time"):
            exchange.kind = Kind.TIME
            return of_json({"server_timestamp_ms": int(self._now_ms()), **self._stamps(exchange)})
        known = order_in(path)
        if method != "POST" or not (path in ("/v1/orders", "/v1/segments") or known):
            return problem(404, "NOT_FOUND", "there is no such route")
        if self._rules.has_tokens and exchange.token != self._token:
            return self._unauthorized()
        if path == "/v1/orders":
            exchange.kind = Kind.START
            if body.strip():
                check_head(headers)
            return self._start(exchange, read_start(body).service_order_number)
        if known is not None and known[1] == "lease":
            exchange.kind = Kind.LEASE
            return self._renew(known[0], headers.get("lease"))
        check_head(headers)
        request = (
            read_uploads(body)
            if known is None
            else read_single(known[0], headers.get("lease"), body)
        )
        return self._upload(exchange, request)

    # -- clocks and tokens

    def _now_ms(self) -> float:
        return self._wall_ms() + self._log.step_ms

    def _stamps(self, exchange: Exchange) -> dict[str, object]:
        now_ms = round(self._now_ms(), 3)
        held_ms = (self._monotonic_s() - exchange.came_s) * 1000
        clock_id = f"clock-{self._clock_id}"
        return {"received_ms": round(now_ms - held_ms, 3), "sent_ms": now_ms, "clock_id": clock_id}

    @property
    def _token(self) -> str:
        return f"conformance-token-{self._tokens}"

    def _next_token(self) -> None:
        self._tokens += 1
        self._on_token(self._token)

    def _unauthorized(self) -> Answer:
        detail = "the token is no longer valid"
        return problem(401, "UNAUTHORIZED", detail, www_authenticate='Bearer error="invalid_token"')

    # -- orders

    def _start(self, exchange: Exchange, wanted: str | None) -> Answer:
        fault = exchange.fault = self._script.for_start()
        if fault == "start_busy":
            return self._busy(exchange)
        key = exchange.idempotency_key
        known = [each for each in self._log.orders.values() if key and each.wanted_key == key]
        if known:
            opened = known[0]
        else:
            order = wanted or f"CONFORMANCE-{len(self._log.orders) + 1}"
            if order in self._log.orders:
                return problem(409, "ORDER_IN_USE", "this order number is in use")
            now_ms = int(self._now_ms())
            opened = Opened(order, now_ms, exchange.came_s, key, f"lease-of-{order}-1")
            self._log.orders[order] = opened
        answer = of_json(self._grant(opened), 201)
        if fault == "start_lost":
            return Answer(answer.status, answer.body, cut=Cut.BEFORE)
        return answer

    def _grant(self, opened: Opened) -> dict[str, object]:
        until_ms = opened.server_timestamp_ms + LEASE_MS
        return {
            "service_order_number": opened.order,
            "server_timestamp_ms": opened.server_timestamp_ms,
            "report_interval_ms": self._rules.interval_ms,
            "accept_until_ms": until_ms,
            "correction_window_ms": LEASE_MS,
            "lease": opened.lease,
            "lease_expires_ms": until_ms,
        }

    def _renew(self, order: str, shown: str | None) -> Answer:
        opened = self._log.orders.get(order)
        if opened is None:
            return problem(404, "UNKNOWN_ORDER", "there is no such order")
        if self._rules.has_leases and not shown:
            raise Bad(401, "LEASE_MISSING", "the lease that is to be renewed has to be shown")
        opened.leases_given += 1
        opened.lease = f"lease-of-{order}-{opened.leases_given}"
        opened.is_lease_over = False
        return of_json(self._grant(opened))

    # -- uploads

    def _upload(self, exchange: Exchange, request: Request) -> Answer:
        exchange.kind = Kind.UPLOAD
        exchange.segments = [each for upload in request.uploads for each in upload.segments]
        exchange.orders = frozenset(upload.order for upload in request.uploads)
        exchange.report = request.has_report
        unknown = exchange.orders - self._log.orders.keys()
        if unknown:
            raise Bad(422, "NOT_OPENED", f"order {min(unknown)} was never opened")
        exchange.without_lease = frozenset(each.order for each in request.uploads if not each.lease)
        exchange.tell(Told.NOTHING)
        count = len(exchange.segments)
        if self._limit is not None:
            if count > self._limit:
                return page(413, "413 Request Entity Too Large")
            self._limit = None
        is_fresh = bool(exchange.keys - self._stored)
        fault = exchange.fault = self._script.for_upload(count, is_fresh=is_fresh)
        return self._troubled(exchange, request, fault)

    def _troubled(self, exchange: Exchange, request: Request, fault: str) -> Answer:
        match fault:
            case "busy" | "busy_again" | "busy_date" | "limited":
                return self._busy(exchange)
            case "cut":
                return Answer(503, cut=Cut.BEFORE)
            case "lost" | "truncated":
                answer = self._paced(exchange, request)
                exchange.tell(Told.NOTHING)
                return replace(answer, cut=Cut.BEFORE if fault == "lost" else Cut.WITHIN)
            case "slow":
                return replace(self._paced(exchange, request), delay_s=SLOW_S)
            case "unauthorized":
                self._next_token()
                return self._unauthorized()
            case "too_large":
                self._limit = exchange.limit = len(exchange.segments) // 2
                return page(413, "413 Request Entity Too Large")
            case "login":
                return page(200, "Please log in")
            case "strange":
                return of_json({"status": "ok"})
            case "short":
                return self._short(exchange, request)
            case "proxy_json":
                return of_json({"error": "Unprocessable Entity", "code": 422}, 422)
            case "proxy_page":
                return page(502, "502 Bad Gateway")
            case "redirect":
                return page(307, "Moved", location=ELSEWHERE)
            case "refused":
                return self._refused(exchange, request)
            case "lease_over":
                self._log.orders[request.uploads[0].order].is_lease_over = True
            case "step":
                self._step()
        return self._paced(exchange, request)

    def _busy(self, exchange: Exchange) -> Answer:
        now_s, wall_s = self._monotonic_s(), self._wall_ms() / 1000
        wish, status = str(WISH_S), 503
        exchange.not_before_s = now_s + WISH_S
        if exchange.fault == "busy_date":
            at_s = math.ceil(wall_s) + WISH_S
            exchange.not_before_s = now_s + at_s - wall_s
            wish = formatdate(at_s, usegmt=True)
        more = {}
        if exchange.fault == "limited":
            status, more = 429, {"ratelimit": f'"conformance";r=0;t={WISH_S}'}
        return problem(status, "CONFORMANCE", "come again later", retry_after=wish, **more)

    def _step(self) -> None:
        self._log.step_ms += STEP_MS
        self._log.stepped_s = self._monotonic_s()
        self._clock_id += 1

    def _paced(self, exchange: Exchange, request: Request) -> Answer:
        """Take what may be taken now: all, once all trouble has come."""
        if request.is_single and self._rules.has_leases:
            over = self._lease_problem(request.uploads[0].order, request.uploads[0].lease)
            if over is not None:
                return over
        if self._script.is_over:
            left = len(exchange.segments)
        elif request.is_single:
            left = len(exchange.segments)
            if left > SINGLE_SEGMENTS:
                exchange.limit = SINGLE_SEGMENTS
                detail = f"at most {SINGLE_SEGMENTS} segments for now"
                return problem(413, "TOO_MANY_SEGMENTS", detail)
        else:
            left = PACED_SEGMENTS
        for at, segment in enumerate(exchange.segments):
            upload = next(each for each in request.uploads if each.order == segment.order)
            if self._rules.has_leases and self._lease_problem(upload.order, upload.lease):
                exchange.told[at] = Told.LATER
            elif segment.key in self._refused_keys:
                exchange.told[at] = Told.REFUSED
            elif segment.key in self._stored or left > 0:
                left -= segment.key not in self._stored
                self._stored.add(segment.key)
                exchange.told[at] = Told.STORED
            else:
                exchange.told[at] = Told.LATER
        return self._told(exchange, request, exchange.told)

    def _lease_problem(self, order: str, shown: str | None) -> Answer | None:
        opened = self._log.orders[order]
        if not shown:
            return problem(401, "LEASE_MISSING", "show the order's lease")
        if shown != opened.lease or opened.is_lease_over:
            return problem(401, "LEASE_EXPIRED", "POST /v1/orders/NUMBER/lease renews it")
        return None

    def _refused(self, exchange: Exchange, request: Request) -> Answer:
        """Refuse the first segment that isn't stored; the route for one order stores none then."""
        bad = next(at for at, each in enumerate(exchange.segments) if each.key not in self._stored)
        if request.is_single:
            exchange.told[bad] = Told.REFUSED
            error = self._item(exchange, bad, bad)
            body = json.loads(problem(422, "BAD_SEGMENTS", "1 segment breaks the rules").body)
            return Answer(
                422,
                json.dumps({**body, "errors": [error], "error_count": 1}).encode(),
                "application/problem+json",
            )
        self._refused_keys.add(exchange.segments[bad].key)
        return self._paced(exchange, request)

    @staticmethod
    def _item(exchange: Exchange, at: int, index: int) -> dict[str, object]:
        return {
            "index": index,
            "business_data_number": exchange.segments[at].number,
            "reason": "CONFORMANCE",
            "detail": "refused for good, as a test",
        }

    def _short(self, exchange: Exchange, request: Request) -> Answer:
        """Speak of one segment fewer than were sent, as if all was well."""
        whole = self._told(exchange, request, [Told.STORED] * len(exchange.segments))
        body = json.loads(whole.body)
        if request.is_single:
            body["accepted"] -= 1
            del body["receipts"][-1], body["segments"][-1]
        elif body["uploads"][-1]["count"] == 1:
            del body["uploads"][-1]
        else:
            body["uploads"][-1]["count"] -= 1
            body["uploads"][-1]["stored"] -= 1
        return of_json(body)

    def _told(self, exchange: Exchange, request: Request, told: list[Told]) -> Answer:
        """Say of each segment what becomes of it, in the form of the route."""
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
            own = told[at : at + count]
            errors = [
                self._error(exchange, at + index, index, each)
                for index, each in enumerate(own)
                if each is not Told.STORED
            ]
            answer: dict[str, object] = {
                "service_order_number": upload.order,
                "count": count,
                "stored": count - len(errors),
            }
            uploads.append({**answer, "errors": errors} if errors else answer)
            at += count
        return of_json({**self._stamps(exchange), "uploads": uploads})

    def _error(self, exchange: Exchange, at: int, index: int, told: Told) -> dict[str, object]:
        item = self._item(exchange, at, index)
        if told is Told.LATER:
            order = exchange.segments[at].order
            is_over = self._log.orders[order].is_lease_over or order in exchange.without_lease
            reason = "LEASE_EXPIRED" if is_over and self._rules.has_leases else "QUOTA"
            item |= {"reason": reason, "detail": "not now"}
        return {**item, "final": told is Told.REFUSED, "stored": False}

"""What becomes of an upload: the script's trouble, or a part of it is taken. Pure."""

from collections.abc import Callable
from dataclasses import replace

from durabill.producers.conformance.answers import (
    ELSEWHERE,
    Answer,
    Cut,
    login_page,
    of_json,
    page,
    problem,
    proxy_json,
)
from durabill.producers.conformance.clock import PlayedClock
from durabill.producers.conformance.exchange import Exchange, Kind, Log, Told
from durabill.producers.conformance.script import Script
from durabill.producers.conformance.shapes import Bad, Request
from durabill.producers.conformance.verdicts import (
    about_another,
    about_fewer,
    about_nothing,
    as_text,
    refused_single,
    told_of_all,
)

PACED_SEGMENTS = 2
"""So many new segments are taken of an upload that goes well, until all trouble has come."""
SINGLE_SEGMENTS = 4
"""So many segments an upload for a single order may have until then."""
SLOW_S = 1.0
FOREIGN = ("LEASE_OF_ANOTHER", "LEASE_INVALID")

_TOO_LARGE = "413 Request Entity Too Large"


class Uploads:
    """Takes uploads. `unauthorized` returns the 401 of a token that is no longer valid."""

    def __init__(
        self,
        log: Log,
        script: Script,
        clock: PlayedClock,
        *,
        has_leases: bool,
        unauthorized: Callable[[], Answer],
    ) -> None:
        self._log = log
        self._script = script
        self._clock = clock
        self._has_leases = has_leases
        self._unauthorized = unauthorized
        self._limit: int | None = None  # segments of a request, since the 413
        self._stored: set[tuple[str, int]] = set()
        self._refused: set[tuple[str, int]] = set()

    def take(self, exchange: Exchange, request: Request) -> Answer:
        """Answer an upload, and note what it is told; raise Bad for an order never opened."""
        exchange.kind = Kind.UPLOAD
        exchange.segments = [each for upload in request.uploads for each in upload.segments]
        exchange.orders = frozenset(upload.order for upload in request.uploads)
        exchange.report = request.has_report
        unknown = exchange.orders - self._log.orders.keys()
        if unknown:
            raise Bad(422, "NOT_OPENED", f"order {min(unknown)} was never opened")
        exchange.without_lease = frozenset(each.order for each in request.uploads if not each.lease)
        exchange.foreign_lease = frozenset(
            each.order
            for each in request.uploads
            if self._log.orders[each.order].lease_problem(each.lease) in FOREIGN
        )
        exchange.tell(Told.NOTHING)
        count = len(exchange.segments)
        if self._limit is not None:
            if count > self._limit:
                return page(413, _TOO_LARGE)
            self._limit = None
        is_fresh = bool(exchange.keys - self._stored)
        exchange.fault = self._script.for_upload(count, is_fresh=is_fresh)
        return self._troubled(exchange, request)

    def _troubled(self, exchange: Exchange, request: Request) -> Answer:
        match exchange.fault:
            case "busy" | "busy_date" | "limited":
                return self._clock.busy(exchange)
            case "cut" | "down":
                return Answer(503, cut=Cut.BEFORE)
            case "lost" | "truncated" as fault:
                answer = self._paced(exchange, request)
                exchange.tell(Told.NOTHING)
                return replace(answer, cut=Cut.BEFORE if fault == "lost" else Cut.WITHIN)
            case "slow":
                return replace(self._paced(exchange, request), delay_s=SLOW_S)
            case "unauthorized":
                return self._unauthorized()
            case "too_large":
                self._limit = exchange.limit = (len(exchange.segments) + 1) // 2
                return page(413, _TOO_LARGE)
            case "refused":
                return self._refuse_one(exchange, request)
            case "lease_over":
                opened = self._log.orders[request.uploads[0].order]
                opened.leases_over = len(opened.leases)
            case "step":
                self._clock.step()
            case "":
                pass
            case _:
                return self._of_somebody_else(exchange, request)
        return self._paced(exchange, request)

    def _of_somebody_else(self, exchange: Exchange, request: Request) -> Answer:
        match exchange.fault:
            case "login":
                return login_page()
            case "strange":
                return of_json({"status": "ok"})
            case "mixed":
                return about_another(exchange, request, self._clock.stamps(exchange))
            case "short":
                return about_fewer(exchange, request, self._clock.stamps(exchange))
            case "as_text":
                return as_text(exchange, request, self._clock.stamps(exchange))
            case "nulls":
                return about_nothing(request)
            case "proxy_json":
                return proxy_json()
            case "proxy_page":
                return page(502, "502 Bad Gateway", retry_after="soon")
            case "firewall":
                return page(403, "Request blocked")
            case "failed":
                return problem(500, "INTERNAL", "it is not your fault")
            case "redirect":
                return page(307, "Moved", location=ELSEWHERE)
        assert exchange.fault == "redirect_get"
        return page(303, "See Other", location=ELSEWHERE)

    def _paced(self, exchange: Exchange, request: Request) -> Answer:
        """Take what may be taken now: all, once all trouble has come."""
        left = len(exchange.segments)
        if request.is_single:
            upload = request.uploads[0]
            if reason := self._lease_problem(upload.order, upload.lease):
                return problem(401, reason, "POST /v1/orders/NUMBER/lease renews it")
            if left > SINGLE_SEGMENTS and not self._script.is_over:
                detail = f"at most {SINGLE_SEGMENTS} segments for now"
                return problem(413, "TOO_MANY_SEGMENTS", detail)
        elif not self._script.is_over:
            left = PACED_SEGMENTS
        problems = {
            each.order: self._lease_problem(each.order, each.lease) for each in request.uploads
        }
        for at, segment in enumerate(exchange.segments):
            if reason := problems[segment.order]:
                exchange.told[at], exchange.reasons[at] = Told.LATER, reason
            elif segment.key in self._refused:
                exchange.told[at], exchange.reasons[at] = Told.REFUSED, "CONFORMANCE"
            elif segment.key in self._stored or left > 0:
                left -= segment.key not in self._stored
                self._stored.add(segment.key)
                exchange.told[at] = Told.STORED
            else:
                exchange.told[at] = Told.LATER
        return told_of_all(exchange, request, exchange.told, self._clock.stamps(exchange))

    def _lease_problem(self, order: str, shown: str | None) -> str:
        return self._log.orders[order].lease_problem(shown) if self._has_leases else ""

    def _refuse_one(self, exchange: Exchange, request: Request) -> Answer:
        """Refuse the first segment that isn't stored."""
        bad = next(at for at, each in enumerate(exchange.segments) if each.key not in self._stored)
        if request.is_single:
            exchange.told[bad] = Told.REFUSED
            return refused_single(exchange, bad)
        self._refused.add(exchange.segments[bad].key)
        return self._paced(exchange, request)

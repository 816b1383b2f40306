"""The gateway that is played: what it knows, and what it answers. Pure: clocks are arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from durabill.producers.conformance.answers import (
    ELSEWHERE,
    Answer,
    Cut,
    login_page,
    of_json,
    problem,
    proxy_json,
)
from durabill.producers.conformance.clock import WISH_S, PlayedClock
from durabill.producers.conformance.exchange import Exchange, Kind, Log, Opened
from durabill.producers.conformance.script import Script
from durabill.producers.conformance.shapes import (
    Bad,
    Start,
    bearer_of,
    check_head,
    check_key,
    one_order,
    order_in,
    read_single,
    read_start,
    read_uploads,
)
from durabill.producers.conformance.uploads import Uploads

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
        self._clock = PlayedClock(log, monotonic_s=monotonic_s, wall_ms=wall_ms)
        self._uploads = Uploads(
            log,
            script,
            self._clock,
            has_leases=rules.has_leases,
            unauthorized=self._change_token,
        )
        self._on_token = on_token
        self._wanted = dict[str, Start]()  # Idempotency-Key -> what was asked for first
        self._tokens = 0
        self._next_token()

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[Exchange, Answer]:
        """Return what was written down of a request, and its answer. Names in `headers` are low."""
        exchange = Exchange(Kind.OTHER, self._clock.monotonic_s())
        exchange.token = bearer_of(headers.get("authorization", ""))
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
            return self._time(exchange)
        known = order_in(path)
        if method == "GET" and (answer := self._looked(path)):
            return answer
        if method != "POST" or not (path in ("/v1/orders", "/v1/segments") or known):
            return problem(404, "NOT_FOUND", "there is no such route")
        if self._rules.has_tokens and exchange.token != self._token:
            return self._unauthorized()
        if path == "/v1/orders":
            exchange.kind = Kind.START
            if body.strip():
                check_head(headers)
            check_key(headers.get("idempotency-key"))
            return self._start(exchange, read_start(body))
        if known is not None and known[1] == "lease":
            exchange.kind = Kind.LEASE
            return self._renew(exchange, known[0], headers.get("lease"))
        check_head(headers)
        request = (
            read_uploads(body)
            if known is None
            else read_single(known[0], headers.get("lease"), body)
        )
        return self._uploads.take(exchange, request)

    def _time(self, exchange: Exchange) -> Answer:
        now_ms = int(self._clock.now_ms())
        return of_json({"server_timestamp_ms": now_ms, **self._clock.stamps(exchange)})

    @staticmethod
    def _looked(path: str) -> Answer | None:
        """Return what a client finds that looks around first, None where there is no such route."""
        if path in ("/healthz", "/readyz"):
            return of_json({"status": "ok"})
        if path == "/v1/receipt-keys":
            return of_json({"keys": []})
        if one_order(path):
            return problem(503, "CONFORMANCE", "no worker is played", retry_after=str(WISH_S))
        return None

    # -- tokens

    @property
    def _token(self) -> str:
        return f"conformance-token-{self._tokens}"

    def _next_token(self) -> None:
        self._tokens += 1
        self._on_token(self._token)

    def _change_token(self) -> Answer:
        self._next_token()
        return self._unauthorized()

    @staticmethod
    def _unauthorized() -> Answer:
        detail = "the token is no longer valid"
        return problem(401, "UNAUTHORIZED", detail, www_authenticate='Bearer error="invalid_token"')

    # -- orders

    def _start(self, exchange: Exchange, wanted: Start) -> Answer:
        self._check_same(exchange.idempotency_key, wanted)
        fault = exchange.fault = self._script.for_start()
        match fault:
            case "start_busy":
                return self._clock.busy(exchange)
            case "start_login":
                return login_page()
            case "start_proxy":
                return proxy_json()
        opened = self._opened_by(exchange.idempotency_key)
        if opened is None:
            order = wanted.service_order_number or f"CONFORMANCE-{len(self._log.orders) + 1}"
            if order in self._log.orders:
                return problem(409, "ORDER_IN_USE", "this order number is in use")
            now_ms = int(self._clock.now_ms())
            opened = Opened(order, now_ms, exchange.came_s, exchange.idempotency_key)
            opened.new_lease()
            self._log.orders[order] = opened
        answer = of_json(self._grant(opened, exchange), 201)
        if fault == "start_lost":
            return Answer(answer.status, answer.body, cut=Cut.BEFORE)
        return answer

    def _opened_by(self, key: str) -> Opened | None:
        known = (each for each in self._log.orders.values() if key and each.wanted_key == key)
        return next(known, None)

    def _check_same(self, key: str, wanted: Start) -> None:
        """Raise Bad where a key comes with another body, whatever became of the first try."""
        if key and self._wanted.setdefault(key, wanted) != wanted:
            raise Bad(422, "IDEMPOTENCY_KEY_REUSED", "the same Idempotency-Key with another body")

    def _grant(self, opened: Opened, exchange: Exchange) -> dict[str, object]:
        until_ms = opened.server_timestamp_ms + LEASE_MS
        return {
            "service_order_number": opened.order,
            "server_timestamp_ms": opened.server_timestamp_ms,
            "report_interval_ms": self._rules.interval_ms,
            "accept_until_ms": until_ms,
            "correction_window_ms": LEASE_MS,
            "lease": opened.leases[-1],
            "lease_expires_ms": until_ms,
            **self._clock.stamps(exchange),
        }

    def _renew(self, exchange: Exchange, order: str, shown: str | None) -> Answer:
        opened = self._log.orders.get(order)
        if opened is None:
            return problem(404, "UNKNOWN_ORDER", "there is no such order")
        exchange.orders = frozenset([order])
        reason = opened.lease_problem(shown) if self._rules.has_leases else ""
        if reason and reason != "LEASE_EXPIRED":  # one that is over can be renewed
            exchange.foreign_lease = exchange.orders
            raise Bad(401, reason, "the order's lease that is to be renewed has to be shown")
        exchange.fault = self._script.for_renewal()
        match exchange.fault:
            case "renewal_busy":
                return self._clock.busy(exchange)
            case "renewal_login":
                return login_page()
        opened.new_lease()
        return of_json(self._grant(opened, exchange))

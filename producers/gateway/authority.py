"""The session authority: what a gateway signs, counts and knows of its clients, in one place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from durabill.producers.gateway.broker_clock import BrokerClock
from durabill.producers.gateway.caller import caller_of
from durabill.producers.gateway.checks import json_answer
from durabill.producers.gateway.client_reports import ClientReports, ClientsAnswer, worst_first
from durabill.producers.gateway.key_files import WatchedKeys
from durabill.producers.gateway.key_sets import Kind
from durabill.producers.gateway.leases import LeaseBook
from durabill.producers.gateway.quotas import QuotaLimits, Quotas
from durabill.producers.gateway.receipts import ReceiptSigner
from durabill.producers.gateway.routes import Handler
from durabill.producers.gateway.served_clock import ServedClock
from durabill.schemas.base64url import decode64

LEASE_MS = 7 * 86_400_000
"""A long weekend offline, and some days for somebody to notice. A worker keeps every order for as
long after its opening, so a longer time costs it memory."""
CLIENTS_TOLD_MAX = 1_000


@dataclass(frozen=True, slots=True)
class AuthorityConfig:
    """What a gateway signs with. Without a file its keys are made up, and die with the process.

    `lease_ms` is how long a lease holds, and how long after its opening an order's segments may
    arrive however old they are. `are_leases_required`: no upload is taken without one.
    """

    lease_keys_file: Path | None = None
    receipt_keys_file: Path | None = None
    lease_ms: int = LEASE_MS
    are_leases_required: bool = False

    def __post_init__(self) -> None:
        if self.lease_ms < 1:
            raise ValueError(f"lease_ms is {self.lease_ms}: 1 or more")


class Authority:
    """Leases, receipts, quotas, reports of clients, and the time that they are told.

    Belongs to one event loop. Raises SigningKeyError.
    """

    def __init__(
        self,
        config: AuthorityConfig,
        limits: QuotaLimits,
        *,
        topic: str,
        broker_clock: BrokerClock,
        monotonic_ns: Callable[[], int],
        entropy: Callable[[int], bytes],
        report_interval_ms: int,
        correction_window_ms: int | None,
    ) -> None:
        self.clock = ServedClock(broker_clock, monotonic_ns, entropy)
        self._lease_keys = WatchedKeys(config.lease_keys_file, Kind.LEASE)
        self.leases = LeaseBook(
            self._lease_keys,
            lease_ms=config.lease_ms,
            is_required=config.are_leases_required,
            correction_window_ms=correction_window_ms,
        )
        receipt_keys = WatchedKeys(config.receipt_keys_file, Kind.RECEIPT)
        self.receipts = ReceiptSigner(receipt_keys, topic, self.clock.now_ms, entropy)
        self.quotas = Quotas(limits)
        self.client_reports = ClientReports(
            taken_for_ms=correction_window_ms, interval_ms=report_interval_ms
        )
        self._since_ms = self.clock.now_ms()

    def number_secret(self) -> bytes:
        """Return what the numbers of repeated starts are made with."""
        return decode64(self._lease_keys.keys.number_secret)

    def limited(self, handler: Handler) -> Handler:
        """Return a handler that is within its tenant's quota of requests."""

        async def handle(request: web.Request) -> web.StreamResponse:
            with self.quotas.request(caller_of(request)):
                return await handler(request)

        return handle

    async def get_receipt_keys(self, _: web.Request) -> web.Response:
        """GET /v1/receipt-keys"""
        response = json_answer(self.receipts.public_keys())
        response.headers["cache-control"] = "public, max-age=30"  # less than a hand-over takes
        return response

    async def get_clients(self, _: web.Request) -> web.Response:
        """GET /v1/clients"""
        now_ms = self.clock.now_ms()
        clients = worst_first(self.client_reports.clients(now_ms))
        shown = clients[:CLIENTS_TOLD_MAX]
        return json_answer(ClientsAnswer(now_ms, self._since_ms, shown, len(clients)))

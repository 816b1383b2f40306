"""What clients say of themselves with their uploads, so that somebody sees who is losing data.

The latest report of each client is kept, in memory alone. A client that says nonsense hurts nobody:
what it says is cut to a size, and one tenant's clients can't push out another's.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from durabill.producers.gateway.caller import Caller
from durabill.schemas.limits import LONG_MAX
from durabill.schemas.text import plain

REPORTS_MAX = 10_000
"""Of all tenants, in this gateway; a tenant has its share of them at least."""
_REASONS_MAX = 20
_NAME_CHARS_MAX = 64
AT_RISK_SHARE = 0.5
"""Of the time in which a segment is taken: who waits longer than that has to be looked at."""
_SILENT_INTERVALS = 6
_SILENT_MIN_MS = 60_000

_Count = Annotated[int, Meta(ge=0)]


class ClientReport(Struct, frozen=True, omit_defaults=True):
    """What a client says of itself: `client` of an upload. Fields that aren't ours are passed over.

    `pending` segments wait on its disk, those of the upload among them; `oldest_ms` is for how long
    the oldest of them has waited.
    """

    name: Annotated[str, Meta(description="the client's name among those of its tenant")] = ""
    pending: Annotated[
        _Count, Meta(description="segments that wait on its disk, those of this request among them")
    ] = 0
    oldest_ms: Annotated[_Count, Meta(description="for how long the oldest of them has waited")] = 0
    refused: Annotated[Mapping[str, _Count], Meta(description="reason -> segments set aside")] = {}
    clock_bound_ms: Annotated[
        float | None, Meta(description="how far its server time may be off")
    ] = None
    suspends: Annotated[_Count, Meta(description="how often its machine slept")] = 0


class Risk(StrEnum):
    """How it stands with a client, the worst first."""

    LOSING = "LOSING"
    """Segments of it were refused."""
    AT_RISK = "AT_RISK"
    """Its oldest segment has waited for more than half of the time in which it is taken."""
    SILENT = "SILENT"
    """Segments waited on its disk when it was heard last, some report intervals ago."""
    OK = "OK"


class SeenClient(Struct, frozen=True):
    """The latest report of one client, and how it stands with it now."""

    tenant: str
    client: str
    name: str
    risk: Risk
    seen_ms: Annotated[int, Meta(description="when it came, server time")]
    pending: int
    oldest_ms: Annotated[int, Meta(description="for how long the oldest has waited by now")]
    refused: Mapping[str, int]
    clock_bound_ms: float | None
    suspends: int


class ClientsAnswer(Struct, frozen=True):
    """The clients that this gateway has heard of, those first that are about to lose data."""

    server_timestamp_ms: int
    since_ms: Annotated[int, Meta(description="since when this gateway listens")]
    clients: list[SeenClient]
    client_count: Annotated[int, Meta(description="of all; the list may be shorter")]


class SeenReport(Struct, frozen=True):
    """What a client said of itself, and when."""

    report: ClientReport
    seen_ms: int


def risk_of(
    report: ClientReport, silent_ms: int, *, taken_for_ms: int | None, interval_ms: int
) -> Risk:
    """Return how it stands with a client that was heard `silent_ms` ago.

    A segment is taken for `taken_for_ms` after its end (None: nobody knows).
    """
    if any(report.refused.values()):
        return Risk.LOSING
    waits_ms = report.oldest_ms + silent_ms
    if not report.pending:
        return Risk.OK
    if taken_for_ms is not None and waits_ms > taken_for_ms * AT_RISK_SHARE:
        return Risk.AT_RISK
    if silent_ms > max(_SILENT_INTERVALS * interval_ms, _SILENT_MIN_MS):
        return Risk.SILENT
    return Risk.OK


class ClientReports:
    """The latest report of each client. Belongs to one event loop.

    A segment is taken for `taken_for_ms` after its end.
    """

    def __init__(
        self, *, taken_for_ms: int | None, interval_ms: int, reports_max: int = REPORTS_MAX
    ) -> None:
        self._taken_for_ms = taken_for_ms
        self._interval_ms = interval_ms
        self._max = reports_max
        self._count = 0
        self._seen: dict[str, dict[tuple[str, str], SeenReport]] = {}  # by tenant, the oldest first

    def note(self, caller: Caller, report: ClientReport, now_ms: int) -> SeenReport:
        """Keep what a client says of itself."""
        own = self._seen.setdefault(caller.tenant, {})
        report = _cut(report)
        key = caller.client, report.name
        self._count -= own.pop(key, None) is not None
        seen = own[key] = SeenReport(report, now_ms)
        self._count += 1
        if self._count > self._max:
            self._make_room(own)
        return seen

    def settled(self, caller: Caller, seen: SeenReport, count: int) -> None:
        """Take in that so many of what waited when a client said this wait no longer.

        Else a client that has ended well would be one that fell silent with segments on its disk.
        """
        own = self._seen.get(caller.tenant, {})
        key = caller.client, seen.report.name
        if own.get(key) is seen:  # it has said nothing newer meanwhile
            left = max(0, seen.report.pending - count)
            own[key] = SeenReport(replace(seen.report, pending=left), seen.seen_ms)

    def _make_room(self, own: dict[tuple[str, str], SeenReport]) -> None:
        """Forget the oldest of the tenant that has more than its share."""
        share = max(1, self._max // len(self._seen))
        crowd = own if len(own) > share else max(self._seen.values(), key=len)
        del crowd[next(iter(crowd))]
        self._count -= 1
        for tenant in [name for name, clients in self._seen.items() if not clients]:
            del self._seen[tenant]

    def clients(self, now_ms: int) -> Iterator[SeenClient]:
        """Yield all clients as of now, in no order."""
        for tenant, clients in self._seen.items():
            for (client, name), seen in clients.items():
                report, silent_ms = seen.report, max(0, now_ms - seen.seen_ms)
                risk = risk_of(
                    report,
                    silent_ms,
                    taken_for_ms=self._taken_for_ms,
                    interval_ms=self._interval_ms,
                )
                yield SeenClient(
                    tenant,
                    client,
                    name,
                    risk,
                    seen.seen_ms,
                    report.pending,
                    report.oldest_ms + silent_ms if report.pending else 0,
                    report.refused,
                    report.clock_bound_ms,
                    report.suspends,
                )


def worst_first(clients: Iterator[SeenClient]) -> list[SeenClient]:
    """Return clients by their risk, and within it those whose segments wait longest first."""
    risks = list(Risk)
    return sorted(
        clients,
        key=lambda each: (risks.index(each.risk), -each.oldest_ms, each.tenant, each.client),
    )


def _cut(report: ClientReport) -> ClientReport:
    """Return a report of a bounded size, that can be shown."""
    refused = list(report.refused.items())[:_REASONS_MAX]
    bound = report.clock_bound_ms
    return ClientReport(
        _text(report.name),
        min(report.pending, LONG_MAX),
        min(report.oldest_ms, LONG_MAX),
        {_text(reason): min(count, LONG_MAX) for reason, count in refused},
        bound if bound is None or 0 <= bound <= LONG_MAX else None,
        min(report.suspends, LONG_MAX),
    )


def _text(text: str) -> str:
    return plain(text[:_NAME_CHARS_MAX])

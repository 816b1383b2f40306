"""A gateway that has lost its keys makes nothing of an offline client's backlog too late."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.spool import Entry, Spool
from durabill.producers.sdk.uplink import (
    NO_NOTES,
    AtRisk,
    OrderTerms,
    SendNotes,
    SendResult,
    UplinkRefused,
)
from durabill.schemas import SegmentEvent
from tests.broker.test_client import NOW_MS, QUICK, Uplink
from tests.unit.test_spool import state
from tests.waiting import HANG_S, wait_until

HOUR_MS = 3_600_000


class KeysLost(Uplink):
    """A gateway that calls leases invalid; without one, what is older than an hour is too late."""

    def __init__(self) -> None:
        super().__init__()
        self.has_keys = False

    def renew(
        self, service_order_number: str, lease: str, *, timeout_s: float | None = None
    ) -> OrderTerms:
        if not self.has_keys:
            raise UplinkRefused("LEASE_INVALID", "its key has gone")
        return OrderTerms("new", NOW_MS * 2, NOW_MS * 2, HOUR_MS)

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        result = SendResult()
        for index, each in enumerate(segments):
            lease = notes.leases.get(each.service_order_number)
            if lease == "a.b.c":
                result.stale_leases.add(each.service_order_number)
            elif lease is None and each.end_ms < self.now_ms() - HOUR_MS:
                result.refused[index] = UplinkRefused("TOO_LATE", "it is")
            else:
                self.got.append(each)
                result.accepted.append(index)
        return result


@pytest.mark.parametrize("window_ms", [HOUR_MS, None])
def test_only_what_is_not_too_late_is_sent_without_a_lease(
    tmp_path: Path, window_ms: int | None
) -> None:
    """Where nobody has said what is too late, all is sent, as there is nothing to wait for."""
    terms = OrderTerms("a.b.c", NOW_MS * 2, NOW_MS * 2, window_ms)
    ages_ms = [3 * HOUR_MS, 2 * HOUR_MS, HOUR_MS - 1_000, 60_000, 0]  # the third is close to it
    with Spool(tmp_path / "spool", fsync=False) as spool:
        for number, age_ms in enumerate(ages_ms, 1):
            end_ms = NOW_MS - age_ms
            each = SegmentEvent("SO1", number, end_ms - 10, end_ms, number == len(ages_ms))
            spool.append_all([Entry([each], state(number + 1, "SO1", ended=True), terms)])
    uplink, told = KeysLost(), list[Exception]()
    with Client(uplink, tmp_path / "spool", backoff=QUICK, on_error=told.append) as client:
        if window_ms is None:
            wait_until(lambda: client.stats().pending == 0, "all is sent")
            assert client.stats().rejected == 2
            return
        wait_until(lambda: client.stats().pending == 3, "what is in time is sent")
        wait_until(lambda: any(isinstance(each, AtRisk) for each in told), "the rest is told")
        assert (client.flush(0.2), client.rejected()) == (3, [])
        uplink.has_keys = True
        assert client.flush(HANG_S) == 0
        assert client.rejected() == []
    assert sorted(each.business_data_number for each in uplink.got) == [1, 2, 3, 4, 5]

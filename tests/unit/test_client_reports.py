"""What clients say of themselves: who is about to lose data, and that nobody can flood it."""

import msgspec
import pytest

from durabill.deploy.commands.clients import _show
from durabill.producers.gateway.caller import ALL_SCOPES, Caller
from durabill.producers.gateway.client_reports import (
    ClientReport,
    ClientReports,
    Risk,
    risk_of,
    worst_first,
)

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000


def of(tenant: str, client: str = "c") -> Caller:
    return Caller(tenant, client, ALL_SCOPES, "k")


def reports(**more: int) -> ClientReports:
    return ClientReports(taken_for_ms=DAY_MS, interval_ms=10_000, **more)


@pytest.mark.parametrize(
    ("report", "silent_ms", "risk"),
    [
        (ClientReport(), 0, Risk.OK),
        (ClientReport(), 10 * DAY_MS, Risk.OK),
        (ClientReport(pending=5, oldest_ms=10_000), 10_000, Risk.OK),
        (ClientReport(pending=5, oldest_ms=10_000), 61_000, Risk.SILENT),
        (ClientReport(pending=5, oldest_ms=DAY_MS // 2 + 1), 0, Risk.AT_RISK),
        (ClientReport(pending=5, oldest_ms=0), DAY_MS // 2 + 1, Risk.AT_RISK),
        (ClientReport(refused={"TOO_LATE": 0}), 0, Risk.OK),
        (ClientReport(refused={"TOO_LATE": 1}), 0, Risk.LOSING),
    ],
)
def test_how_it_stands(report: ClientReport, silent_ms: int, risk: Risk) -> None:
    assert risk_of(report, silent_ms, taken_for_ms=DAY_MS, interval_ms=10_000) is risk


def test_without_a_window_only_silence_is_known() -> None:
    report = ClientReport(pending=1, oldest_ms=100 * DAY_MS)
    assert risk_of(report, 0, taken_for_ms=None, interval_ms=10_000) is Risk.OK


def test_the_latest_word_of_each_client_worst_first() -> None:
    kept = reports()
    kept.note(of("a"), ClientReport(pending=9, oldest_ms=1_000), NOW_MS - 5_000)
    kept.note(of("a"), ClientReport(), NOW_MS)
    kept.note(of("a", "d"), ClientReport(pending=1, oldest_ms=DAY_MS), NOW_MS - 1_000)
    kept.note(of("b"), ClientReport(refused={"TOO_LATE": 2}), NOW_MS)
    kept.note(of("b"), ClientReport(name="second", suspends=3), NOW_MS)
    found = worst_first(kept.clients(NOW_MS))
    told = [(each.tenant, each.client, each.name, each.risk) for each in found]
    assert told == [
        ("b", "c", "", Risk.LOSING),
        ("a", "d", "", Risk.AT_RISK),
        ("a", "c", "", Risk.OK),
        ("b", "c", "second", Risk.OK),
    ]
    assert found[1].oldest_ms == DAY_MS + 1_000
    assert found[2].pending == 0


def test_what_has_come_waits_no_longer_but_where_the_client_has_said_more_since() -> None:
    kept = reports()
    seen = kept.note(of("a"), ClientReport(pending=5, oldest_ms=1_000), NOW_MS)
    kept.settled(of("a"), seen, 3)
    (found,) = kept.clients(NOW_MS + 100_000)
    assert (found.pending, found.oldest_ms, found.risk) == (2, 101_000, Risk.SILENT)
    kept.settled(of("a"), seen, 1)  # a slower request's, of what was said before
    seen = kept.note(of("a"), ClientReport(pending=1), NOW_MS)
    kept.settled(of("a"), seen, 2)  # the client counted what was left alone
    (found,) = kept.clients(NOW_MS + 100_000)
    assert (found.pending, found.oldest_ms, found.risk) == (0, 0, Risk.OK)


def test_one_tenant_cannot_push_out_anothers() -> None:
    kept = reports(reports_max=100)
    for at in range(10):
        kept.note(of("good", f"meter-{at}"), ClientReport(), NOW_MS)
    for at in range(5_000):
        kept.note(of("flood", f"c{at}"), ClientReport(), NOW_MS)
    tenants = [each.tenant for each in kept.clients(NOW_MS)]
    assert (tenants.count("good"), len(tenants)) == (10, 100)
    for at in range(300):  # nor many tenants with one client each
        kept.note(of(f"t{at}"), ClientReport(), NOW_MS)
    assert len(list(kept.clients(NOW_MS))) == 100


def test_nonsense_is_cut_to_a_size_that_can_be_shown() -> None:
    kept = reports()
    huge = 2**63 - 1
    report = ClientReport(
        name="\x1b[31m" + "x" * 10_000,
        pending=huge,
        oldest_ms=huge,
        refused={f"R{at}\n" * 100: huge for at in range(1_000)},
        clock_bound_ms=-1.0,
        suspends=huge,
    )
    kept.note(of("a"), report, NOW_MS)
    (found,) = kept.clients(NOW_MS)
    text = msgspec.json.encode(found)
    assert len(text) < 20_000
    assert b"\x1b" not in text
    assert len(found.refused) <= 20
    assert found.clock_bound_ms is None


def test_fields_of_newer_clients_are_passed_over() -> None:
    content = b'{"name":"m","pending":3,"oldest_ms":4,"colour":"red"}'
    found = msgspec.json.decode(content, type=ClientReport)
    assert found == ClientReport(name="m", pending=3, oldest_ms=4)


def test_a_narrow_terminal_gets_rows_uncut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    kept = reports()
    kept.note(of("acme"), ClientReport(name="meter 7 in Berlin", pending=1, oldest_ms=5), NOW_MS)
    found = msgspec.to_builtins(list(kept.clients(NOW_MS + 61_000)))
    _show(found, 1, [{"server_timestamp_ms": NOW_MS + 61_000, "since_ms": 0}])
    told = " ".join(capsys.readouterr().out.splitlines()[1].split())
    assert told == "SILENT acme/c/meter 7 in Berlin 1 1 min 01.005 s 0 1 min 01.000 s ago"

"""What the ledger says of servers that are away: at once, with the address, and then seldom."""

import time

import pytest

from durabill.stream_processors.ledger.servers import Server, is_refusal
from tests.waiting import wait_until

WHERE = "PostgreSQL at me@db:5432/ledger (DURABILL_LEDGER_DSN)"


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def a_server(clock: Clock) -> Server:
    return Server("PostgreSQL", "me@db:5432/ledger", "DURABILL_LEDGER_DSN", clock)


def test_an_outage_is_told_at_once_then_seldom_and_its_end_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    server = a_server(clock)
    server.answered()
    assert caplog.messages == []
    told_s: list[float] = []
    for tenth in range(1_200):  # two minutes, ten failures a second
        clock.now_s = 1_000 + tenth / 10
        server.failed("connection\n\trefused")
        if len(caplog.messages) > len(told_s):
            told_s.append(tenth / 10)
    assert told_s == [0, 1, 3, 7, 15, 31, 61, 91]
    assert f"{WHERE}: connection refused; trying again" == caplog.messages[0]
    assert f"{WHERE}: connection refused; trying again, for 31 s now" == caplog.messages[5]
    assert server.is_away
    clock.now_s = 1_120
    server.answered()
    server.answered()
    assert [f"{WHERE} is back after 120.0 s"] == caplog.messages[len(told_s) :]
    assert not server.is_away


def test_a_server_that_comes_and_goes_is_damped_too(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    server = a_server(clock)
    for tenth in range(600):
        clock.now_s = 1_000 + tenth / 10
        (server.failed if tenth % 2 else server.answered)(*(["refused"] if tenth % 2 else []))
    assert len(caplog.messages) <= 2 * 7
    server.answered()
    caplog.clear()
    clock.now_s += 61
    server.failed("refused")
    assert [f"{WHERE}: refused; trying again"] == caplog.messages


def test_a_silence_is_told_while_it_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durabill.stream_processors.ledger.servers.SILENCE_S", 0.5)
    server = a_server(Clock())
    with server.asked():
        pass
    time.sleep(0.7)
    assert caplog.messages == []
    with server.asked():
        wait_until(lambda: bool(caplog.messages), "it is told")
    assert [f"{WHERE}: no answer for 0.5 s; trying again"] == caplog.messages


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ('failed: FATAL:  password authentication failed for user "me"', True),
        ('failed: FATAL:  database "x" does not exist', True),
        ('failed: FATAL:  role "x" does not exist', True),
        ("failed: fe_sendauth: no password supplied", True),
        ('failed: FATAL:  no pg_hba.conf entry for host "::1", user "me"', True),
        ("failed: Connection refused", False),
        ("failed: FATAL:  the database system is starting up", False),
        ('connection to socket "/x" failed: No such file. Does the directory exist?', False),
        ("Multiple connection attempts failed. All failures were:\n- FATAL: role", False),
    ],
)
def test_a_server_that_turns_us_down_is_told_from_one_that_is_away(
    text: str, refused: bool
) -> None:
    assert refused == is_refusal(ValueError(text))

"""Which connection to the worker's web server goes for a new one, where there are too many."""

from dataclasses import dataclass
from typing import cast

from durabill.stream_processors.worker.web_port import Connection, Connections


@dataclass(eq=False)
class Stand:
    """In place of a connection."""

    is_known: bool = False
    has_asked: bool = False
    is_there: bool = True

    def cut_off(self) -> None:
        self.is_there = False


def test_strangers_go_first_then_the_silent_and_the_new_one_never() -> None:
    connections = Connections(4)
    busy, silent, known, at_work = Stand(False, True), Stand(), Stand(True), Stand(True, True)
    for each in (busy, silent, known, at_work):
        connections.hears(cast(Connection, each))
    goes_first = [silent, busy, known, at_work]
    for count in range(1, 5):
        connections.hears(cast(Connection, Stand(True, True)))
        assert len(connections) == 4
        assert [each.is_there for each in goes_first] == [False] * count + [True] * (4 - count)


def test_strangers_that_ask_without_end_keep_out_nobody() -> None:
    """Each of them waits for an answer, always, and the new one has not asked yet."""
    connections = Connections(4)
    strangers = [Stand(has_asked=True) for _ in range(4)]
    new = Stand()
    for each in (*strangers, new):
        connections.hears(cast(Connection, each))
    assert [each.is_there for each in (*strangers, new)] == [False, True, True, True, True]

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


def crowd(*stands: Stand) -> Connections:
    connections = Connections(len(stands))
    for each in stands:
        connections.hears(cast(Connection, each))
    return connections


def test_a_stranger_goes_first_and_the_new_one_never() -> None:
    known, at_work, busy, silent = Stand(True), Stand(True, True), Stand(False, True), Stand()
    connections, goes = crowd(known, at_work, busy, silent), [silent, busy, known]
    for count in range(1, 4):
        new = Stand(True)
        connections.hears(cast(Connection, new))
        assert (len(connections), new.is_there, at_work.is_there) == (4, True, True)
        assert [each.is_there for each in goes] == [False] * count + [True] * (3 - count)


def test_strangers_that_ask_without_end_keep_out_nobody() -> None:
    """Each of them waits for an answer, always; who has just come has not asked yet."""
    strangers = [Stand(has_asked=True) for _ in range(4)]
    connections, new = crowd(*strangers), [Stand(), Stand()]
    for count, each in enumerate(new, 1):
        connections.hears(cast(Connection, each))
        assert [other.is_there for other in strangers] == [False] * count + [True] * (4 - count)
    assert all(each.is_there for each in new)


def test_strangers_that_hold_connections_push_out_nobody_who_waits() -> None:
    waiting, strangers = Stand(has_asked=True), [Stand() for _ in range(3)]
    connections = crowd(waiting, *strangers)
    for each in [Stand() for _ in range(20)]:
        connections.hears(cast(Connection, each))
    assert waiting.is_there
    assert not any(each.is_there for each in strangers)

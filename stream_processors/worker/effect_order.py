"""The effect order: the steps by which a worker makes its results durable.

Openings and totals are queued in one queue, the opening of an order ahead of its totals, and
committed in the order of the queue. Each step rests on those before it, so a crash between any two
loses nothing and publishes nothing twice. A test walks the order: it kills a worker after each step
and expects the same openings and totals.

A checkpoint takes these steps:

    1 folded      a chunk is in the table; its openings, totals and dead letters are queued
    2 encoded     the barrier is set at an offset, and the changed blocks are encoded
    3 published   every opening, total, dead letter and forward that the blocks rest on has been
                  delivered
    4 written     every changed block, and the meta as the last, are committed to the changelog
    5 committed   the group's offset has moved to the barrier
    6 confirmed   orders that were forgotten before the barrier give back their slots

A new owner of a partition takes these before it reads segments:

    1 inherited   the terms in force, and what else a first checkpoint needs, are queued
    2 recorded    they are committed to the changelog
"""

from collections.abc import Callable
from enum import Enum


class Step(Enum):
    """A step that has just been done, of those above."""

    FOLDED = "folded"
    ENCODED = "encoded"
    PUBLISHED = "published"
    WRITTEN = "written"
    COMMITTED = "committed"
    CONFIRMED = "confirmed"
    INHERITED = "inherited"
    RECORDED = "recorded"


OnStep = Callable[[Step], None]
"""Is told of each step as it is done; the crash tests inject one that ends the process."""


def ignore_step(step: Step) -> None:
    """Do nothing."""

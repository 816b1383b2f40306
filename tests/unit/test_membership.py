"""Partitions are shared out whatever a broker's metadata says, and a spare worker knows by whom."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from durabill.stream_processors.worker.health import Health
from durabill.stream_processors.worker.membership import Assignor

PARTITIONS = 4


class Cluster:
    """The metadata of a broker that knows of no topic yet."""

    def partitions_for_topic(self, topic: str) -> None:
        return None


def app_of(url: str) -> Any:
    """A worker's app as far as the assignor looks at it."""
    app: Any = faust.App(
        "group",
        store="memory://",
        autodiscover=False,
        canonical_url=url,
        PartitionAssignor=Assignor,
        topic_disable_leader=True,
    )
    app.segments_topic_name, app.segments_partitions = "segments", PARTITIONS
    app.Table("checkpoint", partitions=PARTITIONS).on_table_changed = None
    app.tables._changelogs["group-checkpoint-changelog"] = app.tables.data["checkpoint"]
    return app


def share_out(*urls: str) -> list[Any]:
    """Return the apps after one has shared out the partitions among all of them."""
    apps = [app_of(url) for url in urls]
    topics = {"segments", "group-checkpoint-changelog"}
    members: dict[str, ConsumerProtocolMemberMetadata] = {
        f"member-{at}": app.assignor.metadata(topics) for at, app in enumerate(apps)
    }
    given = apps[0].assignor.assign(Cluster(), members)
    for at, app in enumerate(apps):
        app.assignor.on_assignment(given[f"member-{at}"])
    return apps


def owned(app: Any) -> list[int]:
    return sorted(tp.partition for tp in app.assignor.assigned_actives() if tp.topic == "segments")


def test_topics_that_metadata_lacks_are_shared_out() -> None:
    one, other = share_out("http://a:1", "http://b:1")
    assert [*range(PARTITIONS)] == sorted(owned(one) + owned(other))
    assert len(owned(one)) == 2
    assert [] == one.assignor.unowned() == other.assignor.unowned()


def test_before_the_first_assignment_nobody_has_anything() -> None:
    assert [*range(PARTITIONS)] == app_of("http://a:1").assignor.unowned()


def test_workers_that_give_the_same_address_hide_none_of_each_others_partitions() -> None:
    apps = share_out(*["http://127.0.0.1:6066"] * (PARTITIONS + 1))
    assert [] in [owned(app) for app in apps], "one is spare"
    assert all(app.assignor.unowned() == [] for app in apps)


class Spare:
    """A processor with no partitions."""

    def __init__(self, tasks: dict[int, object]) -> None:
        self.stopping, self.is_assigned, self.tasks = False, True, tasks
        self.writers: dict[int, object] = {}


@pytest.mark.parametrize(
    ("tasks", "unowned", "ready"),
    [({}, [1, 3], False), ({}, [], True), ({0: SimpleNamespace(held="")}, [1, 3], True)],
)
def test_without_partitions_it_is_ready_only_if_others_have_all(
    tasks: dict[int, object], unowned: list[int], ready: bool
) -> None:
    look: Callable[[], list[int]] = lambda: unowned  # noqa: E731
    processor: Any = Spare(tasks)
    problems = Health(processor, 60, unowned=look).unready()
    assert ready == (not problems)
    if not ready:
        assert "nobody has 1, 3" in problems[0]

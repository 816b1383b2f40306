"""Workers of one group with other policies: each says its own, and `status` names both."""

import json
from pathlib import Path
from typing import Any

from tests.broker.test_cli import run
from tests.broker.worker_kit import Deployment, Worker, deployment
from tests.waiting import wait_until

SHORT: dict[str, Any] = {"settle_grace_s": 3, "idle_timeout_s": 7}
LONG: dict[str, Any] = {"settle_grace_s": 5, "idle_timeout_s": 11, "interim_interval_s": 60}
DIFFERENT = "workers of this group have different policies"
SHORT_WORDS, LONG_WORDS = "3s/7s/1d/1d", "5s/11s/1d/1m"


def url_of(worker: Worker) -> str:
    return f"http://127.0.0.1:{worker.port}"


def status(deployed: Deployment, *arguments: str, of: tuple[Worker, ...]) -> tuple[int, str]:
    """Exit code and output of `durabill status`."""
    settings = {
        "bootstrap_servers": deployed.bootstrap_servers,
        "application_id": deployed.name,
        "segments_topic": deployed.segments,
        "totals_topic": deployed.totals,
        "orders_topic": deployed.orders,
        "dead_letters_topic": deployed.dead_letters,
        "worker_urls": ",".join(map(url_of, of)),
        "data_dir": str(deployed.folder),
    }
    ran = run("status", *arguments, **settings)
    assert ran.stderr == ""
    return ran.returncode, ran.stdout


def shown(deployed: Deployment, *workers: Worker) -> str:
    """The text of `durabill status`."""
    return status(deployed, of=workers)[1]


def told(deployed: Deployment, *workers: Worker) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `durabill status`."""
    code, output = status(deployed, "--json", of=workers)
    return code, json.loads(output)


def is_only_told(deployed: Deployment, problem: str, *workers: Worker) -> bool:
    """Whether this is the one problem; a busy worker may stand still for a moment."""
    problems = told(deployed, *workers)[1]["problems"]
    return len(problems) == 1 and problem in problems[0]


def is_well(deployed: Deployment, *workers: Worker) -> bool:
    """Whether there is none."""
    code, answer = told(deployed, *workers)
    return (code, answer["problems"]) == (0, [])


def graces_ms(worker: Worker) -> dict[int, list[int]]:
    """Partition -> the graces by a worker's own page: the one in force, and those to come."""
    lanes = worker.get("/status")[1]["partitions"]
    return {
        int(each): [record["terms"]["policy"]["settle_grace_ms"] for record in lane["policy"]]
        for each, lane in lanes.items()
    }


def own_graces_ms(worker: Worker) -> set[int]:
    """The graces by which a worker bills its partitions, or will."""
    return {each[-1] for each in graces_ms(worker).values()}


def all_by(worker: Worker, grace_ms: int) -> bool:
    graces = graces_ms(worker)
    return graces.keys() == {0, 1, 2, 3} and all(each[-1] == grace_ms for each in graces.values())


def test_two_policies_are_told_by_both_and_by_status(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    with deployment(bootstrap_servers, tmp_path) as deployed:
        short = deployed.start_and_wait(**SHORT)
        wait_until(lambda: is_well(deployed, short), "all is well")
        assert SHORT_WORDS in shown(deployed, short)

        long = deployed.start(**LONG)
        deployed.wait_for_owners(short, long)
        # The group may share its partitions out once more before it rests.
        for worker, grace_ms in ((short, 3_000), (long, 5_000)):
            wait_until(lambda: own_graces_ms(worker) == {grace_ms}, "it bills by its own")  # noqa: B023
        wait_until(lambda: is_only_told(deployed, DIFFERENT, short, long), "all rests")
        code, answer = told(deployed, short, long)
        assert code == 1
        (problem,) = answer["problems"]
        assert DIFFERENT in problem
        assert f"{url_of(short)} by {SHORT_WORDS}" in problem
        assert f"{url_of(long)} by {LONG_WORDS}" in problem
        assert DIFFERENT in " ".join(shown(deployed, short, long).split())
        assert {url_of(short), url_of(long)} == {each["owner"] for each in answer["partitions"]}
        for each in answer["partitions"]:
            grace_ms = 3_000 if each["owner"] == url_of(short) else 5_000
            assert grace_ms == each["policy"][-1]["terms"]["policy"]["settle_grace_ms"]

        # What one has left, the other bills by its own from there on, and says so.
        assert short.stop() == 0
        deployed.workers.remove(short)
        deployed.wait_for_owners(long)
        wait_until(lambda: all_by(long, 5_000), "all partitions are billed by the other's")
        wait_until(lambda: is_well(deployed, long), "all is well again")
        assert shown(deployed, long).count(LONG_WORDS) == 4
        assert "from offset" in long.log()

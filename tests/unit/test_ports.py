"""The worker's own code, and its simulation, need neither Faust nor a Kafka client."""

import subprocess
import sys
from pathlib import Path

import pytest

import tests.sim

CLIENTS = ("faust", "aiokafka", "confluent_kafka")
WORKER = "durabill.stream_processors.worker"
SIMULATION = [f"tests.sim.{each.stem}" for each in Path(tests.sim.__path__[0]).glob("[!_]*.py")]


@pytest.mark.parametrize(
    "modules",
    [
        [f"{WORKER}.{each}" for each in ("ports", "processor", "recovery")],
        [each for each in SIMULATION if each != "tests.sim.test_sim"] + ["tests.sim.__main__"],
    ],
    ids=["worker", "simulation"],
)
def test_importing_it_loads_no_client(modules: list[str]) -> None:
    program = (
        f"import sys, importlib; [importlib.import_module(each) for each in {modules}]\n"
        f"print(*(each for each in {CLIENTS} if each in sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout == "\n"

"""A client that is killed again and again, at any instruction: nothing that it has told is lost."""

import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from durabill.producers.sdk.client import Client
from durabill.producers.sdk.server_clock import ServerStamps
from durabill.producers.sdk.uplink import NO_NOTES, Grant, SendNotes, SendResult, UplinkUnavailable
from durabill.schemas import SegmentEvent
from tests.waiting import HANG_S

ROUNDS = 7

CHILD = """
import sys
from tests.unit.test_client_kill import meter
meter(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


class FileUplink:
    """A server that writes down what it has got, and whose answers get lost now and then."""

    def __init__(self, path: str, seed: int) -> None:
        self._log = open(path, "a", encoding="utf-8")  # noqa: SIM115 - until we are killed
        self._dice = random.Random(seed)

    def start(
        self, service_order_number: str | None = None, *, timeout_s: float | None = None
    ) -> Grant:
        number = service_order_number or f"{self._dice.randrange(10**12):012}"
        return Grant(number, time.time_ns() // 1_000_000, 4)

    def server_time(self, *, timeout_s: float | None = None) -> ServerStamps:
        now_ms = time.time_ns() / 1_000_000
        return ServerStamps(now_ms, now_ms)

    def send(self, segments: Sequence[SegmentEvent], notes: SendNotes = NO_NOTES) -> SendResult:
        part = segments[: self._dice.randint(1, len(segments))]
        for each in part:
            values = (each.business_data_number, each.start_ms, each.end_ms, each.end_identifier)
            print(each.service_order_number, *map(int, values), file=self._log)
        self._log.flush()
        if self._dice.random() < 0.2:
            return SendResult(problem=UplinkUnavailable("the answer was lost"))
        return SendResult(accepted=list(range(len(part))))

    def close(self) -> None:
        self._log.close()


def meter(spool: str, log: str, seed: int) -> None:
    """Meter, and tell each thing that a caller may rely on from then on."""
    with Client(FileUplink(log, seed), spool, on_error=lambda _: None) as client:
        services = [client.resume(each.service_order_number) for each in client.unfinished()]
        while True:
            if len(services) < 4:
                services.append(client.start())
            for service in services:
                state = service.state
                print("stored", state.service_order_number, state.next_number, flush=True)
            time.sleep(0.01)
            if seed % 2 and services[0].state.next_number > 6:
                ended = services.pop(0)
                ended.end(timeout_s=0.01)
                number = ended.service_order_number
                print("ended", number, ended.state.next_number, flush=True)


@pytest.mark.parametrize("seed", [1])
def test_client_that_is_killed_again_and_again_loses_nothing(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    spool, log = tmp_path / "spool", tmp_path / "log"
    told = defaultdict[str, int](int)
    ended = set[str]()
    for at in range(ROUNDS):
        command = [sys.executable, "-c", CHILD, str(spool), str(log), str(1_000 * seed + at)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline()]  # it is under way
            threading.Timer(dice.uniform(0.0, 0.4), child.kill).start()
            lines += child.stdout.read().splitlines()
        whole = [line.split() for line in lines if len(line.split()) == 3]
        assert whole, "it was killed, it didn't fail"
        for kind, number, next_number in whole:
            told[number] = max(told[number], int(next_number) - 1)
            if kind == "ended":
                ended.add(number)
    uplink = FileUplink(str(log), seed)
    with Client(uplink, spool, on_error=lambda _: None) as client:
        for state in client.unfinished():
            assert state.service_order_number not in ended
            client.resume(state.service_order_number).end(timeout_s=HANG_S)
        assert client.flush(HANG_S) == 0
    got = defaultdict[str, dict[int, tuple[int, int, int]]](dict)
    for line in log.read_text(encoding="utf-8").splitlines():
        number, *rest = line.split()
        if len(rest) == 4 and rest[3] in "01":  # the last line of a killed child may be torn
            at, start_ms, end_ms, ends = map(int, rest)
            assert got[number].setdefault(at, (start_ms, end_ms, ends)) == (start_ms, end_ms, ends)
    assert set(told) <= set(got)
    for number, segments in got.items():
        assert sorted(segments) == list(range(1, len(segments) + 1))
        assert len(segments) >= told[number]
        in_order = [segments[at] for at in sorted(segments)]
        assert [ends for *_, ends in in_order] == [0] * (len(segments) - 1) + [1]
        for one, two in pairwise(in_order):
            assert one[1] <= two[0]
    assert len(got) > 4
    assert ended

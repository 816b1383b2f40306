"""Child processes that are measured: their marks, CPU-seconds and memory, from Linux's /proc."""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S = 30.0
LOG_LINES_SHOWN = 20


class BenchError(Exception):
    """A measurement cannot be made; the text says why."""


def cpu_s(pid: int) -> float:
    """Return the CPU-seconds, user and system, of a process with its threads and ended children."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    fields = stat.rpartition(")")[2].split()
    return sum(int(each) for each in fields[11:15]) / CLOCK_TICKS


def memory_mb(pid: int) -> tuple[float, float]:
    """Return a process's (resident memory now, its peak), in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    sizes = {
        line.split(":")[0]: int(line.split()[1]) / 1024
        for line in status.splitlines()
        if line.startswith(("VmRSS", "VmHWM"))
    }
    return sizes["VmRSS"], sizes["VmHWM"]


class Child:
    """A process whose output is read line by line, each with the instant at which it came.

    Lines that are JSON objects are its marks; all lines go into `log`.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        self.started_s = time.monotonic()
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={k: v for k, v in os.environ.items() if not k.startswith("DURABILL_")} | {**env},
            start_new_session=True,  # a Ctrl-C is ours to pass on
        )
        self.pid = self._process.pid
        self._lines: queue.Queue[tuple[float, float, str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self.log.open("wb") as log:
            for line in self._process.stdout:
                try:
                    used_s = cpu_s(self.pid)
                except OSError:
                    used_s = 0.0  # it has ended; what it printed last is for the log only
                self._lines.put((time.monotonic(), used_s, line.decode(errors="replace")))
                log.write(line)
                log.flush()

    def wait_for(self, text: str, timeout_s: float) -> tuple[float, float, str]:
        """Return (instant in s, CPU-seconds by then, line) of the next line that holds `text`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                instant_s, used_s, line = self._lines.get(timeout=0.2)
            except queue.Empty:
                self.check()
                if time.monotonic() > deadline_s:
                    raise BenchError(self.tell(f"did not say '{text}' in time")) from None
                continue
            if text in line:
                return instant_s, used_s, line

    def wait_mark(self, name: str, timeout_s: float) -> tuple[float, float, dict[str, Any]]:
        """Return (instant in s, CPU-seconds by then, content) of the mark `name`."""
        instant_s, used_s, line = self.wait_for(f'"mark": "{name}"', timeout_s)
        content: dict[str, Any] = json.loads(line[line.index("{") :])
        return instant_s, used_s, content

    def check(self) -> None:
        """Raise BenchError if the process has ended."""
        if (code := self._process.poll()) is not None:
            self._reader.join(timeout=5)
            raise BenchError(self.tell(f"ended with {code}"))

    def tell(self, what: str) -> str:
        """Return `what` with the end of what the process has printed, for an error."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n  ".join([f"{self.name} {what}:", *lines[-LOG_LINES_SHOWN:]])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process with its session; SIGKILL where it does not go."""
        if self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(timeout=5)
        if self._process.stdin is not None:
            self._process.stdin.close()

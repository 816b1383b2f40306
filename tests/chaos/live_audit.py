"""`durabill audit` again and again, while everything is killed, frozen and cut off around it.

It may say that it can't be carried out (exit code 2) while servers are away. But nobody falsifies
anything here, so a finding is a false alarm; and at rest all must be proven.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from durabill.deploy.demo.processes import environment
from durabill.stream_processors.settings import Settings

PROVEN, DIFFERS, NOT_CARRIED_OUT = 0, 1, 2
PAUSE_S = 10.0
"""Two cores also run brokers, workers and clients."""
AUDIT_S = 300.0
"""An audit that takes longer hangs: it is patient with a server for half a minute."""

_SHOWN_MAX = 5
_LAST_WORDS_CHARS = 1_500


@dataclass(frozen=True, slots=True)
class LiveAudit:
    """One audit: how it ended (None: it hung), and what it said."""

    began_s: float
    took_s: float
    code: int | None
    result: dict[str, Any]
    last_words: str

    def as_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class LiveAudits(threading.Thread):
    """One audit after the other until it is told to end; `done` grows."""

    def __init__(self, settings: Settings, began_s: float) -> None:
        super().__init__(name="live audits", daemon=True)
        self.done: list[LiveAudit] = []
        self._settings = settings
        self._began_s = began_s
        self._end = threading.Event()

    def run(self) -> None:
        """Go on until `close`."""
        while not self._end.is_set():
            self.done.append(self.audit())
            self._end.wait(PAUSE_S)

    def close(self) -> None:
        """Let the last one come to its end."""
        self._end.set()
        if self.is_alive():
            self.join()

    def audit(self) -> LiveAudit:
        """Carry one out, in a process of its own."""
        at_s = time.monotonic()
        command = [sys.executable, "-m", "durabill.deploy.commands.cli", "audit", "--json"]
        code: int | None
        try:
            ended = subprocess.run(
                [*command, "--processes", "1"],
                env=environment(self._settings),
                capture_output=True,
                text=True,
                timeout=AUDIT_S,
                check=False,
                preexec_fn=lambda: os.nice(5),
            )
            code, output, words = ended.returncode, ended.stdout, ended.stderr
        except subprocess.TimeoutExpired as error:
            code, output, words = None, "", (error.stderr or b"").decode("utf-8", "replace")
        return LiveAudit(
            round(at_s - self._began_s, 1),
            round(time.monotonic() - at_s, 1),
            code,
            _last_object(output),
            words[-_LAST_WORDS_CHARS:].strip(),
        )


def _last_object(output: str) -> dict[str, Any]:
    lines = output.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def violations(audits: Iterable[LiveAudit]) -> Iterator[str]:
    """Yield what no audit may come to, whatever goes on around it."""
    for each in audits:
        told = f"an audit that began at {each.began_s} s and took {each.took_s} s"
        if each.code == DIFFERS and each.result.get("findings"):
            shown = "\n  ".join(map(str, each.result["findings"][:_SHOWN_MAX]))
            yield f"{told} raised a false alarm: {each.result['findings_by_kind']}\n  {shown}"
        elif each.code == PROVEN and each.result.get("result") != "proven":
            yield f"{told} ended with 0, and said {each.result.get('result')!r}"
        elif each.code not in (PROVEN, NOT_CARRIED_OUT):
            yield f"{told} ended with {each.code}:\n{each.last_words}"
        elif "Traceback" in each.last_words:
            yield f"{told} ended with a traceback:\n{each.last_words}"


def not_proven(audit: LiveAudit) -> str:
    """Return what is wrong with an audit at rest; empty: all is proven."""
    result = audit.result
    counts = {name: result.get(name) for name in ("result", "totals", "proven")}
    if audit.code == PROVEN and counts["totals"] == counts["proven"] != 0:
        return ""
    return f"the audit at rest ended with {audit.code}: {counts}\n{audit.last_words}"

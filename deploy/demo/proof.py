"""The demo's last act: its log sealed and archived, every total recomputed, one order drawn.

It runs the very commands that an auditor would, each as a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from durabill.deploy.demo.processes import Stage, environment
from durabill.deploy.local.stack import StackError
from durabill.deploy.terminal import Progress

TOOL_TIMEOUT_S = 240.0
DIFFERS_EXIT_CODE = 1
REPORT_FILE = "audit.html"
PICTURE_FILE = "order.svg"
RECEIPT_FILE = "receipt.txt"


@dataclass(frozen=True, slots=True)
class Proof:
    """What the audit found; the paths are of files that it wrote, "" where there is none."""

    audited: int
    proven: int
    sealed: int
    archived: int
    archive_bytes: int
    findings: tuple[str, ...]
    report_path: str
    picture_path: str
    receipt_path: str


def prove(stage: Stage, orders: list[str], progress: Progress) -> Proof:
    """Seal, archive and audit what has been run; the first of the `orders` is drawn.

    Raises StackError where one of the commands can't be carried out.
    """
    order = orders[0] if orders else None
    steps = 5 if order else 3
    report, picture, receipt = (
        stage.folder / name for name in (REPORT_FILE, PICTURE_FILE, RECEIPT_FILE)
    )
    for path in (report, picture, receipt):
        path.unlink(missing_ok=True)
    with stage.paused("seal"):
        progress("sealing, archiving, auditing", 0, steps)
        _run(stage, "seal", "--once")
    progress("sealing, archiving, auditing", 1, steps)
    archive = _run(stage, "archive", "--once")
    progress("sealing, archiving, auditing", 2, steps)
    key = str(stage.folder / "seal.pub")
    audit = _run(stage, "audit", "--html", str(report), "--seal-key", key, "--archive-key", key)
    progress("sealing, archiving, auditing", 3, steps)
    if order is not None:
        _run(stage, "explain", "--svg", str(picture), "--", order)
        progress("sealing, archiving, auditing", 4, steps)
        _run(stage, "receipt", "--out", str(receipt), "--", order)
    progress("sealing, archiving, auditing", steps, steps)
    return Proof(
        audited=audit["totals"],
        proven=audit["proven"],
        sealed=audit["sealed"],
        archived=archive["rows"],
        archive_bytes=archive["bytes"],
        findings=tuple(f"audit: {_in_words(each)}" for each in audit["findings"]),
        report_path=str(report),
        picture_path=str(picture) if order else "",
        receipt_path=str(receipt) if order else "",
    )


def _run(stage: Stage, command: str, *arguments: str) -> Any:
    """Run a command of ours, and return what it says as JSON."""
    ran = subprocess.run(
        [sys.executable, "-m", "durabill.deploy.commands.cli", command, "--json", *arguments],
        env=environment(stage.settings),
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    lines = ran.stdout.splitlines()
    if ran.returncode not in (0, DIFFERS_EXIT_CODE) or not lines:
        raise StackError(f"durabill {command} ended with {ran.returncode}. {ran.stderr[-2000:]}")
    return json.loads(lines[-1])


def _in_words(finding: Mapping[str, Any]) -> str:
    """Return a finding on one line."""
    return ", ".join(
        f"{name} {value}" for name, value in finding.items() if value not in ("", None)
    )

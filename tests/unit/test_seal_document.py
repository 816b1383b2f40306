"""The receipt in docs/audit.md: it is what the program makes, and it is proven step by step."""

import base64
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from durabill.schemas import Interval, Status, encode_total
from durabill.stream_processors.audit.seal.checkpoints import Origin
from durabill.stream_processors.audit.seal.keys import KeyFile
from durabill.stream_processors.audit.seal.lookup import find_receipt
from durabill.stream_processors.audit.seal.notes import PrivateKey
from tests.broker.ledger_kit import a_total
from tests.seal_kit import sealed
from tests.unit.documents import blocks
from tests.waiting import HANG_S

ORIGIN = Origin("MkU3OEVBNTcwNTJENDM2Qg", "billing.totals", "5Fqx1TQbQ2WmE0g6o5iPVw", 0)
START_MS = 1_767_225_600_000
HOUR_MS = 3_600_000
PAGE = "docs/audit.md"


def example() -> tuple[str, str]:
    """Return the public key and the receipt: the second of three totals."""
    total = replace(
        a_total("01J9ZK3V5Q8W7N2M4R6T8Y0ABC", duration_ms=HOUR_MS),
        status=Status.COMPLETE,
        upper_bound_ms=HOUR_MS,
        started_ms=START_MS,
        ended_ms=START_MS + HOUR_MS,
        intervals=(Interval(START_MS, START_MS + HOUR_MS),),
        end_number=360,
        missing_numbers=(),
        segments=360,
        gap_ms=0,
        numbers_after_end=0,
        digest=sha256(b"the evidence of the example").hexdigest(),
        settled_at_ms=START_MS + HOUR_MS + 30_000,
    )
    key = PrivateKey("billing.example", sha256(b"the key of the example").digest())
    values = [encode_total(each) for each in (a_total("SO-1"), total, a_total("SO-2"))]
    with TemporaryDirectory() as folder:
        sealed(Path(folder), KeyFile(key, ""), values, origin=ORIGIN)
        found = find_receipt(Path(folder), ORIGIN.topic, total.service_order_number)
    assert found is not None
    return str(key.public), found.text()


def told() -> tuple[str, str]:
    """Return the key and the receipt of the page."""
    contents = [content for _, content in blocks(PAGE, "")]
    (receipt,) = (each for each in contents if each.startswith("Durabill receipt"))
    (key,) = (each.strip() for each in contents if each.startswith("billing.example+"))
    return key, receipt


def test_the_receipt_is_the_programs() -> None:
    assert told() == example()


def test_the_command_of_the_page_verifies_it(tmp_path: Path) -> None:
    key, receipt = told()
    (tmp_path / "receipt.txt").write_text(receipt, encoding="utf-8")
    (tmp_path / "seal.pub").write_text(key, encoding="utf-8")
    command = [sys.executable, "-m", "durabill.deploy.commands.cli", "verify", "receipt.txt"]
    ran = subprocess.run(
        [*command, "--key", "seal.pub"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ran.stdout.startswith("VERIFIED\n"), ran.stderr


def test_the_steps_of_the_page_prove_it_by_the_standard_library() -> None:
    """As somebody would who has this page alone."""
    _, receipt = told()
    lines = receipt[receipt.index("c2sp.org") :].split("\n")
    entry = base64.b64decode(lines[1].removeprefix("extra "))
    sibling, uncle = (base64.b64decode(each) for each in lines[3:5])
    leaf = sha256(b"\x00" + entry).digest()
    node = sha256(b"\x01" + sibling + leaf).digest()
    root = sha256(b"\x01" + node + uncle).digest()
    assert lines[2] == "index 1"
    assert lines[6:9] == [str(ORIGIN), "3", base64.b64encode(root).decode()]


def test_the_example_in_python_of_the_page() -> None:
    _, receipt = told()
    examples = (content for _, content in blocks(PAGE, "python"))
    (code,) = (each for each in examples if "c2sp.org/tlog-proof" in each)
    with TemporaryDirectory() as folder:
        (Path(folder) / "receipt.txt").write_text(receipt, encoding="utf-8")
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
    assert ran.stdout == "root: proven\n", ran.stderr

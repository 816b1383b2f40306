"""Whole logs and receipts, verified by Go's sumdb where Go is installed.

What Go says of proofs, tiles and notes is in `tests/seal_oracle/vectors.json` as well, which every
run compares with (`test_seal_merkle`, `test_seal_notes`).
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from durabill.stream_processors.audit.seal.folder import log_folder
from durabill.stream_processors.audit.seal.lookup import find_receipt
from tests.seal_kit import ORIGIN, new_keys, sealed, values_of
from tests.waiting import HANG_S

SOURCES = Path(__file__).parents[1] / "seal_oracle"
pytestmark = pytest.mark.slow  # Go compiles for up to a minute, the first time


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in tests/seal_oracle, built."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: its vectors alone were compared")
    program = tmp_path_factory.mktemp("go") / "oracle"
    built = subprocess.run(
        ["go", "build", "-o", str(program), "."],
        cwd=SOURCES,
        env={**os.environ, "GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    if built.returncode:
        pytest.skip(
            f"Go can't build its program here, its vectors alone were compared: {built.stderr}"
        )
    return program


def ask(oracle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(oracle), *arguments], capture_output=True, text=True, timeout=HANG_S, check=False
    )


def test_the_vectors_are_what_go_says_today(oracle: Path) -> None:
    assert ask(oracle, "vectors").stdout == (SOURCES / "vectors.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [0, 1, 256, 700])
def test_go_verifies_a_whole_log(oracle: Path, tmp_path: Path, size: int) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, values_of(size), [size // 3, size // 2])
    folder = log_folder(tmp_path, ORIGIN).folder
    key = str(keys.key.public)
    ran = ask(oracle, "log", str(folder), key)
    assert "verified" in ran.stdout, ran.stderr
    stranger = str(new_keys(tmp_path, "stranger.key").key.public)
    assert ask(oracle, "log", str(folder), stranger).returncode == 1
    for path in (folder / "tile").rglob("*" if size == 700 else "none"):
        if path.is_file() and path.parent.suffix != ".p":
            data = path.read_bytes()
            path.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])
            assert ask(oracle, "log", str(folder), key).returncode == 1, path
            path.write_bytes(data)


def test_go_verifies_a_receipt(oracle: Path, tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, values_of(700))
    receipt = find_receipt(tmp_path, ORIGIN.topic, "SO-321")
    assert receipt is not None
    key = str(keys.key.public)
    for name, text in (("receipt.txt", receipt.text()), ("a.tlog-proof", receipt.proof_text())):
        (tmp_path / name).write_text(text)
        ran = ask(oracle, "receipt", str(tmp_path / name), key)
        assert ran.stdout == "verified: entry 321 of 700\n", ran.stderr
    (tmp_path / "bad").write_text(receipt.text().replace("index 321", "index 322"))
    assert ask(oracle, "receipt", str(tmp_path / "bad"), key).returncode == 1

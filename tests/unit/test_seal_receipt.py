"""Receipts: what they prove, and that nothing that was altered is verified."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from durabill.schemas import decode_total, encode_total
from durabill.schemas.records import Interval
from durabill.stream_processors.audit.seal.checkpoints import Origin
from durabill.stream_processors.audit.seal.errors import NotVerified, SealError, Unreadable
from durabill.stream_processors.audit.seal.keys import (
    KeyFile,
    chain,
    make_key_file,
    read_key_file,
    rotate_key_file,
)
from durabill.stream_processors.audit.seal.lookup import find_receipt
from durabill.stream_processors.audit.seal.receipt import (
    PROOF_HEAD,
    Receipt,
    read_receipt,
    verify,
)
from tests.broker.ledger_kit import a_total, complete
from tests.seal_kit import ORIGIN, new_keys, sealed, values_of
from tests.waiting import HANG_S

FIRST = a_total("SO-Ω \u202e1")
SECOND = complete(FIRST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealer's folder with 404 totals, two of one order, and its key."""
    made = tmp_path_factory.mktemp("seal")
    values = [*values_of(300), encode_total(FIRST), *values_of(102), encode_total(SECOND)]
    sealed(made, new_keys(made), values, [299])
    return made


@pytest.fixture(scope="module")
def keys(folder: Path) -> KeyFile:
    return read_key_file(folder / "seal.key")


def receipt_of(folder: Path, order: str, revision: int | None = None) -> Receipt:
    found = find_receipt(folder, ORIGIN.topic, order, revision)
    assert found is not None
    return found


def test_the_latest_revision_is_found_or_the_one_that_is_asked_for(
    folder: Path, keys: KeyFile
) -> None:
    number = FIRST.service_order_number
    for revision, total, index in ((None, SECOND, 403), (2, SECOND, 403), (1, FIRST, 300)):
        read = read_receipt(receipt_of(folder, number, revision).text().encode())
        proven = verify(read, keys.trusted, number)
        assert (proven.total, proven.index) == (total, index)
        assert (proven.checkpoint.size, proven.checkpoint.origin) == (404, ORIGIN)
        assert proven.signer == keys.key.public
        assert decode_total(read.value) == total
    assert find_receipt(folder, ORIGIN.topic, number, 3) is None
    assert find_receipt(folder, ORIGIN.topic, "SO-nobody") is None
    with pytest.raises(SealError, match=r"no sealed log of other\.totals"):
        find_receipt(folder, "other.totals", number)


def test_strangers_text_cant_turn_a_line(folder: Path) -> None:
    text = receipt_of(folder, FIRST.service_order_number).for_people
    assert '"SO-Ω \\u202e1"' in text
    assert "\u202e" not in text


def test_the_proof_alone_is_a_receipt_as_well(folder: Path, keys: KeyFile) -> None:
    receipt = receipt_of(folder, "SO-7")
    proof = receipt.proof_text()
    assert proof.startswith(PROOF_HEAD + "\n")
    assert receipt.text().endswith(proof)
    assert verify(read_receipt(proof.encode()), keys.trusted).total.service_order_number == "SO-7"


def test_no_byte_can_be_altered(folder: Path, keys: KeyFile) -> None:
    """Each line in turn, by a character that keeps its form where there is one."""
    text = receipt_of(folder, "SO-7").text()
    for place in range(0, len(text), 7):
        was = text[place]
        other = {"0": "1", "A": "B", "a": "b"}.get(was, "0" if was.isdigit() else "x")
        if was == other:
            continue
        changed = (text[:place] + other + text[place + 1 :]).encode()
        with pytest.raises((NotVerified, Unreadable)):
            verify(read_receipt(changed), keys.trusted)


def test_no_part_can_be_missing(folder: Path, keys: KeyFile) -> None:
    data = receipt_of(folder, "SO-7").text().encode()
    for end in range(0, len(data), 11):
        with pytest.raises((NotVerified, Unreadable)):
            verify(read_receipt(data[:end]), keys.trusted)
    for junk in (data + b"x", data + b"\n", b"\xff" + data, b"x" + data, b"\x00" * 99):
        with pytest.raises((NotVerified, Unreadable)):
            verify(read_receipt(junk), keys.trusted)


def test_a_receipt_survives_the_line_ends_of_mail(folder: Path, keys: KeyFile) -> None:
    receipt = receipt_of(folder, "SO-7")
    by_mail = receipt.text().replace("\n", "\r\n").encode()
    assert verify(read_receipt(by_mail), keys.trusted).index == receipt.index


def test_no_receipt_is_made_of_an_altered_log(tmp_path: Path) -> None:
    sealed(tmp_path, new_keys(tmp_path), values_of(300))
    (tile,) = tmp_path.rglob("tile/0/000")
    tile.write_bytes(tile.read_bytes()[:-1] + b"x")
    with pytest.raises(SealError, match=r"was altered: .*seal check"):
        find_receipt(tmp_path, ORIGIN.topic, "SO-7")


def test_parts_of_two_receipts_dont_make_one(folder: Path, keys: KeyFile) -> None:
    one, two = (receipt_of(folder, order) for order in ("SO-7", "SO-8"))
    mixed = Receipt(two.value, one.index, one.proof, one.note, two.for_people)
    with pytest.raises(NotVerified, match=f"isn't leaf {one.index} of the signed log"):
        verify(mixed, keys.trusted)
    swapped = Receipt(one.value, one.index, one.proof, one.note, two.for_people)
    with pytest.raises(NotVerified, match="the text above the proof was altered"):
        verify(swapped, keys.trusted)


def test_the_wrong_key_and_the_wrong_order_are_told(
    folder: Path, keys: KeyFile, tmp_path: Path
) -> None:
    receipt = receipt_of(folder, "SO-7")
    other = make_key_file(tmp_path / "other", "billing.example")
    with pytest.raises(NotVerified, match="the wrong key, or a fake"):
        verify(receipt, [other])
    with pytest.raises(NotVerified, match="of order SO-7, not of SO-8"):
        verify(receipt, keys.trusted, "SO-8")


def test_a_key_that_was_changed_verifies_by_the_hand_over(
    folder: Path, keys: KeyFile, tmp_path: Path
) -> None:
    receipt = receipt_of(folder, "SO-7")
    new = rotate_key_file(folder / "seal.key", tmp_path / "next.key")
    with pytest.raises(NotVerified):
        verify(receipt, [new])
    hand_overs = read_key_file(tmp_path / "next.key").hand_overs
    assert verify(receipt, chain(new, hand_overs)).signer == keys.key.public


def test_a_total_that_is_too_large_for_the_log_has_a_receipt(tmp_path: Path) -> None:
    start_ms = 1_770_000_000_000
    intervals = tuple(Interval(start_ms + 2 * at, start_ms + 2 * at + 1) for at in range(9_000))
    total = replace(
        a_total("SO-large", duration_ms=9_000),
        intervals=intervals,
        started_ms=start_ms,
        ended_ms=start_ms + 17_999,
        upper_bound_ms=17_999,
        gap_ms=8_999,
    )
    value = encode_total(total)
    assert len(value) > 65_535
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, [*values_of(3), value, *values_of(3)])
    receipt = receipt_of(tmp_path, "SO-large")
    assert verify(read_receipt(receipt.text().encode()), keys.trusted).total == total
    (path,) = tmp_path.rglob("large/*")
    path.write_bytes(value[:-1])
    with pytest.raises(SealError, match="missing, or was altered"):
        receipt_of(tmp_path, "SO-large")


def test_of_a_recreated_topic_the_newest_log_counts(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    sealed(tmp_path, keys, values_of(5))
    again = Origin(ORIGIN.cluster, ORIGIN.topic, "another-id", 0)
    sealed(tmp_path, keys, [encode_total(a_total("SO-2", 1, 9_999))], origin=again)
    proven = verify(receipt_of(tmp_path, "SO-2"), keys.trusted)
    assert (proven.checkpoint.origin, proven.total.duration_ms) == (again, 9_999)
    assert verify(receipt_of(tmp_path, "SO-3"), keys.trusted).checkpoint.origin == ORIGIN


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "durabill.deploy.commands.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=HANG_S, check=False
    )


def test_commands_from_key_to_verdict(tmp_path: Path) -> None:
    """With every exit code: 0 verified, 1 not, 2 unreadable."""
    made = run("keys", "make", "seal.key", "--name", "billing.example", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    public = made.stdout.strip()
    assert run("keys", "public", "seal.key", folder=tmp_path).stdout.strip() == public
    sealed(tmp_path / "seal", read_key_file(tmp_path / "seal.key"), values_of(20))
    asked = ("receipt", "SO-7", "--seal-dir", "seal", "--out")
    for name in ("receipt.txt", "receipt.tlog-proof"):
        assert run(*asked, name, folder=tmp_path).returncode == 0
        good = run("verify", name, "--key", public, folder=tmp_path)
        assert (good.returncode, good.stdout.split()[0]) == (0, "VERIFIED"), good.stderr
    assert (tmp_path / "receipt.tlog-proof").read_text().startswith(PROOF_HEAD)
    other = run("verify", "receipt.txt", "--key", public, "--order", "SO-8", folder=tmp_path)
    assert (other.returncode, other.stdout) == (1, "")
    assert "is NOT verified: it is a receipt of order SO-7, not of SO-8" in other.stderr
    (tmp_path / "cut").write_text((tmp_path / "receipt.txt").read_text()[:700])
    for name in ("cut", "seal.key", "none"):
        bad = run("verify", name, "--key", public, folder=tmp_path)
        assert (bad.returncode, "can't be read" in bad.stderr) == (2, True), bad.stderr
    assert run("verify", "receipt.txt", "--key", "x+y", folder=tmp_path).returncode == 2
    none = run("receipt", "SO-99", "--seal-dir", "seal", folder=tmp_path)
    assert (none.returncode, "no sealed total of order SO-99" in none.stderr) == (1, True)
    (tmp_path / "seal.key").chmod(0o640)
    assert run("keys", "public", "seal.key", folder=tmp_path).returncode == 2


def test_verifying_loads_neither_engine_nor_kafka_nor_postgresql(
    folder: Path, keys: KeyFile, tmp_path: Path
) -> None:
    (tmp_path / "receipt.txt").write_text(receipt_of(folder, "SO-7").text())
    code = (
        "import sys; from durabill.deploy.commands.cli import _run;"
        f"assert _run(['verify', 'receipt.txt', '--key', '{keys.key.public}']) == 0;"
        "heavy = ('numba', 'numpy', 'confluent_kafka', 'psycopg', 'faust', 'pyarrow');"
        "print([each for each in heavy if each in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert ran.stdout.splitlines()[-1] == "[]", ran.stderr

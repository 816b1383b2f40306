"""`durabill keys make`, `public` and `rotate`: of the seal, of leases, of receipts."""

import json
import stat
import time
from pathlib import Path

import pytest

from durabill.deploy.commands.signing_keys import (
    KeyKind,
    kind_of,
    make_file,
    public_of,
    rotate_file,
)
from durabill.producers.gateway.key_files import read_keys
from durabill.producers.gateway.key_sets import HAND_OVER_MS, Kind, SigningKeyError
from durabill.schemas.errors import DurabillError
from durabill.schemas.upload_receipt import read_public_keys

WEEK_S = 604_800.0


@pytest.mark.parametrize("kind", KeyKind)
def test_a_file_is_made_once_for_its_owner_alone(tmp_path: Path, kind: KeyKind) -> None:
    file = tmp_path / "keys"
    told = make_file(file, kind, "billing.example")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kind_of(file) is kind
    assert bool(told.public) == (kind is not KeyKind.LEASE)
    assert json.dumps(told.fields)
    content = file.read_bytes()
    with pytest.raises(DurabillError, match="is there already"):
        make_file(file, kind, "billing.example")
    assert file.read_bytes() == content


def test_what_is_told_of_a_file_is_public(tmp_path: Path) -> None:
    lease, receipt = tmp_path / "leases", tmp_path / "receipts"
    told = json.dumps(make_file(lease, KeyKind.LEASE, "")._asdict())
    kept = read_keys(lease, Kind.LEASE)
    assert kept.keys[0].k not in told
    assert kept.number_secret not in told
    told = json.dumps(make_file(receipt, KeyKind.RECEIPT, "")._asdict())
    assert read_keys(receipt, Kind.RECEIPT).keys[0].d not in told
    with pytest.raises(SigningKeyError, match="secret"):
        public_of(lease)


def test_receipts_keep_every_public_key(tmp_path: Path) -> None:
    file = tmp_path / "receipts"
    first = read_public_keys(make_file(file, KeyKind.RECEIPT, "").public.encode())
    told = rotate_file(file, None, lease_s=WEEK_S, force=False)
    now = read_public_keys(public_of(file).public.encode())
    assert first.keys() < now.keys()
    ahead_ms = told.fields["signs_from_ms"] - time.time_ns() // 1_000_000
    assert 0 < ahead_ms <= HAND_OVER_MS


def test_a_key_of_leases_goes_when_its_leases_have_ended(tmp_path: Path) -> None:
    file = tmp_path / "leases"
    make_file(file, KeyKind.LEASE, "")
    secret = read_keys(file, Kind.LEASE).number_secret
    rotate_file(file, None, lease_s=WEEK_S, force=False)
    with pytest.raises(SigningKeyError, match="wait"):
        rotate_file(file, None, lease_s=WEEK_S, force=False)
    kept = read_keys(file, Kind.LEASE)
    assert (len(kept.keys), kept.number_secret) == (2, secret)


def test_what_goes_wrong_is_told(tmp_path: Path) -> None:
    seal, lease = tmp_path / "seal", tmp_path / "leases"
    make_file(seal, KeyKind.SEAL, "billing.example")
    make_file(lease, KeyKind.LEASE, "")
    with pytest.raises(DurabillError, match="name the new file too"):
        rotate_file(seal, None, lease_s=WEEK_S, force=False)
    with pytest.raises(DurabillError, match="in their own file"):
        rotate_file(lease, tmp_path / "new", lease_s=WEEK_S, force=False)
    with pytest.raises(DurabillError, match="can't be made"):
        make_file(tmp_path / "none" / "keys", KeyKind.LEASE, "")
    lease.chmod(0o644)
    with pytest.raises(DurabillError, match="others can read"):
        rotate_file(lease, None, lease_s=WEEK_S, force=False)

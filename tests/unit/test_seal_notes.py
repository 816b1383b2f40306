"""Signed notes, keys and their hand-overs; Go has made some of the notes."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from durabill.stream_processors.audit.seal.checkpoints import (
    RECREATED,
    Checkpoint,
    Closed,
    Follows,
    Origin,
    parse_checkpoint,
    parse_origin,
    read_checkpoint,
)
from durabill.stream_processors.audit.seal.errors import KeyFileError, NotVerified, Unreadable
from durabill.stream_processors.audit.seal.keys import (
    chain,
    make_key_file,
    read_key_file,
    read_public,
    rotate_key_file,
)
from durabill.stream_processors.audit.seal.merkle import EMPTY_ROOT
from durabill.stream_processors.audit.seal.notes import (
    PrivateKey,
    parse_note,
    parse_private,
    parse_public,
    sign,
)
from tests.seal_kit import ORIGIN, new_keys
from tests.unit.test_seal_merkle import VECTORS

GO_NOTES: list[dict[str, Any]] = VECTORS["notes"]


@pytest.mark.parametrize("vector", GO_NOTES, ids=lambda each: each["public_key"][:10])
def test_notes_and_keys_are_as_go_makes_them(vector: dict[str, Any]) -> None:
    public = parse_public(vector["public_key"])
    private = PrivateKey(public.name, bytes.fromhex(vector["seed"]))
    assert str(private.public) == vector["public_key"]
    assert sign(vector["text"], private) == vector["note"]
    note = parse_note(vector["note"])
    assert note.text == vector["text"]
    assert note.signer([public]) == public
    assert parse_private(private.encoded()).public == public


def test_a_note_is_proven_by_a_known_key_alone() -> None:
    one, two = PrivateKey("a.example", bytes(32)), PrivateKey("b.example", b"\x01" * 32)
    note = sign("text\n", one, two)
    assert parse_note(note).signer([two.public]) == two.public
    with pytest.raises(NotVerified, match=r"not by c\.example"):
        parse_note(note).signer([PrivateKey("c.example", bytes(32)).public])
    with pytest.raises(NotVerified, match=r"signature of a\.example.* is wrong"):
        parse_note(note.replace("text", "test")).signer([two.public, one.public])


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "text\n",
        "text\n\n",
        "text\n\n— name\n",
        "text\n\n- name AAAA\n",
        "text\n\n— name AAAAAAAAAAAA",
        "te\txt\n\n— name AAAAAAAAAAAA\n",
        "text\n\n— name AAAAAAAAAAA\n",
        "text\n\n— name " + "A" * 4 + "\n",
    ],
)
def test_what_is_no_note_is_unreadable(broken: str) -> None:
    with pytest.raises(Unreadable):
        parse_note(broken)


def test_a_key_file_is_for_its_owner_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    public = make_key_file(path, "billing.example")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path).key.public == public
    assert read_public(str(public)) == public
    (tmp_path / "seal.pub").write_text(f"{public}\n")
    assert read_public(str(tmp_path / "seal.pub")) == public
    with pytest.raises(KeyFileError, match="never overwritten"):
        make_key_file(path)
    assert "PRIVATE" not in repr(read_key_file(path).key)


def test_a_key_file_on_a_full_disk_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(KeyFileError, match="No space left"):
            make_key_file(tmp_path / "seal.key")
    assert list(tmp_path.iterdir()) == []
    make_key_file(tmp_path / "seal.key")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610, 0o660])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "seal.key"
    make_key_file(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"others can read .*mode {mode:03o}.*chmod 600"):
        read_key_file(path)


def test_what_is_no_key_is_told_without_the_key(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    make_key_file(path)
    text = path.read_text()
    secret = text.strip().split("+", 4)[4]  # base64 has a "+" as well
    for content in (text.replace("PRIVATE+KEY+", ""), text[:-9] + "\n", "", text.replace("+", " ")):
        path.write_text(content)
        with pytest.raises(KeyFileError) as raised:
            read_key_file(path)
        assert secret[:12] not in str(raised.value)
    with pytest.raises(KeyFileError, match="can't be read: No such file"):
        read_key_file(tmp_path / "none")
    with pytest.raises(KeyFileError, match="no blanks"):
        make_key_file(tmp_path / "other", "with blank")
    path.write_text(text)
    with pytest.raises(KeyFileError, match="private key file: durabill keys public"):
        read_public(str(path))
    with pytest.raises(KeyFileError, match="no file with one"):
        read_public("nowhere")


def test_keys_hand_over_in_both_directions(tmp_path: Path) -> None:
    first = make_key_file(tmp_path / "1", "billing.example")
    second = rotate_key_file(tmp_path / "1", tmp_path / "2")
    third = rotate_key_file(tmp_path / "2", tmp_path / "3")
    found = read_key_file(tmp_path / "3")
    assert found.key.public == third
    assert found.trusted == (third, second, first)
    assert set(chain(first, found.hand_overs)) == {first, second, third}
    stranger = PrivateKey("billing.example", bytes(32)).public
    assert chain(stranger, found.hand_overs) == (stranger,)
    assert stat.S_IMODE((tmp_path / "3").stat().st_mode) == 0o600


def test_a_hand_over_needs_both_signatures(tmp_path: Path) -> None:
    first = make_key_file(tmp_path / "1", "billing.example")
    rotate_key_file(tmp_path / "1", tmp_path / "2")
    mine = PrivateKey("billing.example", b"\x05" * 32)
    text = f"durabill-key-hand-over@v1\nfrom {first}\nto {mine.public}\n"
    with pytest.raises(NotVerified):
        chain(first, sign(text, mine) + "\n")
    good = read_key_file(tmp_path / "2").hand_overs
    for cut in (1, 20, len(good) // 2, len(good) - 1):
        with pytest.raises((Unreadable, NotVerified)):
            chain(first, good[:cut])


def a_checkpoint(**changes: Any) -> Checkpoint:
    return Checkpoint(
        **{"origin": ORIGIN, "size": 0, "root": EMPTY_ROOT, "next_offset": 0, **changes}
    )


def test_checkpoints_are_read_as_they_were_written(tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    other = Origin("cluster", "billing.totals", "other_id-1", 0, 17)
    for each in (
        a_checkpoint(),
        a_checkpoint(size=7, root=b"\x01" * 32, next_offset=12),
        a_checkpoint(follows=Follows(other, 3, b"\x02" * 32)),
        a_checkpoint(closed=Closed(RECREATED, other)),
        a_checkpoint(origin=other, next_offset=17, follows=Follows(ORIGIN, 0, EMPTY_ROOT)),
    ):
        assert read_checkpoint(each.signed(keys.key)) == each
        assert parse_origin(str(each.origin)) == each.origin


def test_an_empty_log_has_a_checkpoint() -> None:
    lines = a_checkpoint().text().split("\n")
    assert lines[1:3] == ["0", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="]


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("durabill-seal/", "another/"),
        ("/topic-id/", "/../"),
        ("/0\n", "/00\n"),
        ("\n0\n", "\n00\n"),
        ("\n0\n", "\n-1\n"),
        ("47DE", "47D"),
        ("offsets 0 0\n", ""),
        ("offsets 0 0\n", "offsets 0\n"),
        ("offsets 0 0\n", "offsets 1 0\n"),
        ("offsets 0 0\n", "offsets 0 0\nmore\n"),
        ("offsets 0 0\n", "offsets 0 0\nclosed gone\n"),
        ("offsets 0 0\n", "offsets 0 0\nfollows x\n"),
    ],
)
def test_what_is_no_checkpoint_is_unreadable(was: str, becomes: str) -> None:
    text = a_checkpoint().text()
    assert was in text
    with pytest.raises(Unreadable):
        parse_checkpoint(text.replace(was, becomes, 1))

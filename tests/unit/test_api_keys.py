"""API keys: their form, the file of their hashes, what is done to it, and how it is followed."""

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from durabill.producers.gateway.auth.api_keys import (
    KEY_CHARS,
    SCOPE_NAMES,
    ApiKey,
    ApiKeyError,
    ApiKeyFile,
    decode_file,
    encode_file,
    id_of,
    new_key,
)
from durabill.producers.gateway.auth.key_book import KeyBook
from durabill.producers.gateway.auth.key_changes import create, revoke, rotate
from durabill.producers.gateway.caller import Caller
from durabill.schemas.text import without_secrets

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def a_key(tenant: str = "acme", expires_ms: int | None = None) -> tuple[str, ApiKey]:
    return new_key(
        tenant,
        "meters",
        ("read", "report"),
        now_ms=NOW_MS,
        expires_ms=expires_ms,
        entropy=os.urandom,
    )


def written(path: Path, *keys: ApiKey) -> Path:
    path.write_bytes(encode_file(ApiKeyFile(1, keys)))
    path.chmod(0o600)
    return path


def test_a_key_is_its_id_and_256_bits() -> None:
    shown, kept = a_key()
    prefix, key_id, secret = shown.split("_")
    assert (prefix, key_id, len(bytes.fromhex(secret))) == ("dbk", kept.id, 32)
    assert (len(shown), id_of(shown), kept.scopes) == (KEY_CHARS, kept.id, ("report", "read"))


def test_nothing_that_is_kept_or_shown_of_a_key_has_its_secret() -> None:
    shown, kept = a_key()
    secret = shown.rpartition("_")[2]
    for text in (repr(kept), encode_file(ApiKeyFile(1, (kept,))).decode()):
        assert secret not in text


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "dbk_",
        "dbk__",
        "dbk_short_00",
        "DBK_" + "0" * 12 + "_" + "0" * 64,
        "dbk_" + "0" * 12 + "_" + "0" * 63,
        "dbk_" + "0" * 12 + "_" + "0" * 65,
        "dbk_" + "0" * 12 + "_" + "A" * 64,
        "dbk_" + "0" * 12 + "_" + "0" * 63 + "\n",
        "dbk_" + "0" * 12 + "_" + "0" * 64 + "\n",
        "dbk_" + "0" * 11 + "\u0660_" + "0" * 64,  # a digit, but not one of ours
        "dbk_" + "i" * 12 + "_" + "0" * 64,
        "dbk_" + "0" * 12 + "_" + "0" * 63 + "\udcff",
        "x" * 1_000_000,
    ],
)
def test_what_is_no_key_opens_nothing(wrong: str, tmp_path: Path) -> None:
    book = KeyBook(written(tmp_path / "keys", a_key()[1]))
    assert id_of(wrong) is None
    assert book.caller(wrong, NOW_MS) is None


def test_secrets_are_hidden_in_what_is_told() -> None:
    shown, kept = a_key()
    secret = shown.rpartition("_")[2]
    token = "eyJhbGciOiJ9.eyJpc3MiOiJ9.c2lnbmF0dXJl"
    encoded = shown.replace("_", "%5F"), shown.replace("_", "%5f")
    for text in (shown, f"x{shown}y", f"?key={shown}&a=b", f"{shown} {shown}", f"dbk_{secret}"):
        assert secret not in without_secrets(text)
    for text in (shown.upper(), *encoded):  # it is no key, but says what the key is
        assert secret not in without_secrets(text).lower()
    assert without_secrets(f"GET /{token.replace('.', '%2E')} HTTP") == "GET /… HTTP"
    assert without_secrets(f"Bearer {token}!") == "Bearer …!"
    told = f"order dbk_ of {kept.id}, eyJ and 1.2.3"
    assert without_secrets(told) == told


def test_a_file_says_what_was_put_in() -> None:
    file = ApiKeyFile(1, (a_key()[1], a_key("other", NOW_MS + 1)[1]))
    assert decode_file(encode_file(file)) == file
    assert decode_file(encode_file(ApiKeyFile(1, ()))) == ApiKeyFile(1, ())


def damaged() -> list[bytes]:
    _, kept = a_key()
    good = json.loads(encode_file(ApiKeyFile(1, (kept,))))
    (entry,) = good["keys"]
    changes: list[dict[str, object]] = [
        {"id": entry["id"] + "\n"},
        {"tenant": ""},
        {"tenant": "a:b"},
        {"tenant": "acme\n"},
        {"scopes": ["root"]},
        {"sha256": entry["sha256"][:-1]},
        {"sha256": entry["sha256"].upper()},
        {"created_ms": "1"},
        {"expires": 5},  # a misspelt limit must not be none
    ]
    files: list[object] = [{**good, "keys": [{**entry, **each}]} for each in changes]
    files += [
        {},
        {"version": 1},
        {"keys": []},
        {**good, "version": 2},
        {**good, "keys": [entry, entry]},
        [],
        {"keys": None},
    ]
    texts = [json.dumps(each).encode() for each in files]
    whole = encode_file(ApiKeyFile(1, (kept,)))
    return [*texts, b"", whole[:-3], whole + whole, b"\xff" + whole, b"[" * 100_000]


@pytest.mark.parametrize("data", damaged())
def test_a_damaged_file_is_no_file(data: bytes) -> None:
    with pytest.raises(ApiKeyError, match="damaged"):
        decode_file(data)


# -- making, replacing, revoking -----------------------------------------------------------------


def made(file: ApiKeyFile, expires_ms: int | None = None) -> tuple[ApiKeyFile, ApiKey]:
    new, _, kept = create(
        file,
        "acme",
        "meters",
        SCOPE_NAMES,
        now_ms=NOW_MS,
        expires_ms=expires_ms,
        entropy=os.urandom,
    )
    return new, kept


def rotated(file: ApiKeyFile, key_id: str, now_ms: int = NOW_MS) -> tuple[ApiKeyFile, ApiKey]:
    new, _, kept = rotate(file, key_id, now_ms=now_ms, grace_ms=DAY_MS, entropy=os.urandom)
    return new, kept


def live(file: ApiKeyFile, now_ms: int) -> list[str]:
    return [each.id for each in file.keys if each.is_live(now_ms)]


def test_two_keys_are_live_until_the_grace_is_over() -> None:
    file, old = made(ApiKeyFile(1, ()))
    file, new = rotated(file, old.id)
    assert (new.tenant, new.client, new.scopes) == (old.tenant, old.client, old.scopes)
    assert live(file, NOW_MS + DAY_MS - 1) == [old.id, new.id]
    assert live(file, NOW_MS + DAY_MS) == [new.id]


def test_three_keys_are_never_live() -> None:
    file, first = made(ApiKeyFile(1, ()))
    file, second = rotated(file, first.id)
    with pytest.raises(ApiKeyError, match=f"key {first.id}, which .* is still live"):
        rotated(file, second.id)
    with pytest.raises(ApiKeyError, match=f"replaced by {second.id}"):
        rotated(file, first.id)
    file, _ = revoke(file, first.id, NOW_MS)
    file, third = rotated(file, second.id)
    assert live(file, NOW_MS) == [second.id, third.id]


def test_a_key_whose_successor_was_revoked_can_be_replaced_again() -> None:
    file, first = made(ApiKeyFile(1, ()))
    file, second = rotated(file, first.id)
    file, _ = revoke(file, second.id, NOW_MS)
    file, third = rotated(file, first.id)
    assert live(file, NOW_MS) == [first.id, third.id]


def test_a_new_key_lasts_as_long_as_the_old_one_was_made_to() -> None:
    file, old = made(ApiKeyFile(1, ()), NOW_MS + 10 * DAY_MS)
    file, new = rotated(file, old.id, NOW_MS + 9 * DAY_MS + 1)
    assert new.expires_ms == NOW_MS + 19 * DAY_MS + 1
    assert file.keys[0].expires_ms == NOW_MS + 10 * DAY_MS  # no later than it would have ended


def test_what_is_not_live_is_not_replaced() -> None:
    file, old = made(ApiKeyFile(1, ()), NOW_MS)
    with pytest.raises(ApiKeyError, match="not live"):
        rotated(file, old.id)
    file, other = made(file)
    file, _ = revoke(file, other.id, NOW_MS)
    with pytest.raises(ApiKeyError, match="not live"):
        rotated(file, other.id)
    with pytest.raises(ApiKeyError, match="there is no key"):
        rotated(file, "0" * 12)
    with pytest.raises(ApiKeyError, match="there is no key"):
        revoke(file, "0" * 12, NOW_MS)


def test_a_revoked_key_stays_revoked_since_then() -> None:
    file, key = made(ApiKeyFile(1, ()))
    file, _ = revoke(file, key.id, NOW_MS)
    again, told = revoke(file, key.id, NOW_MS + 5)
    assert (again, told.revoked_ms) == (file, NOW_MS)


# -- what a gateway knows ------------------------------------------------------------------------


def test_a_key_opens_what_it_is_for(tmp_path: Path) -> None:
    shown, kept = a_key(expires_ms=NOW_MS + 5)
    book = KeyBook(written(tmp_path / "keys", kept, a_key("other")[1]))
    caller = Caller("acme", "meters", frozenset({"report", "read"}), kept.id)
    assert book.caller(shown, NOW_MS + 4) == caller
    assert book.caller(shown, NOW_MS + 5) is None
    wrong = shown[:-1] + ("0" if shown[-1] != "0" else "1")
    assert book.caller(wrong, NOW_MS) is None
    assert book.caller(a_key()[0], NOW_MS) is None


def test_the_way_is_the_same_for_an_unknown_id_and_a_wrong_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs one hash and one comparison of 32 bytes: no clock could tell them apart."""
    shown, kept = a_key()
    book = KeyBook(written(tmp_path / "keys", kept))
    calls: list[tuple[str, int]] = []
    module = "durabill.producers.gateway.auth.key_book"

    def hashed(key: str) -> bytes:
        calls.append(("hash", len(key)))
        return b"h" * 32

    def compared(left: bytes, right: bytes) -> bool:
        calls.append(("compare", len(left) + len(right)))
        return left == right

    monkeypatch.setattr(f"{module}.hash_of", hashed)
    monkeypatch.setattr(f"{module}.hmac.compare_digest", compared)
    found = []
    for key in (shown, a_key()[0]):
        calls.clear()
        assert book.caller(key, NOW_MS) is None
        found.append(list(calls))
    assert found == [[("hash", KEY_CHARS), ("compare", 64)]] * 2


def look(book: KeyBook) -> None:
    asyncio.run(book._file.look())


def replaced(path: Path, *keys: ApiKey) -> None:
    os.replace(written(path.with_name("new"), *keys), path)


def test_a_changed_file_holds_at_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    (first, kept), (second, other) = a_key(), a_key()
    book = KeyBook(written(path, kept))
    replaced(path, other)
    look(book)
    assert book.caller(first, NOW_MS) is None
    assert book.caller(second, NOW_MS) is not None


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """Same inode, same size, same time: what is that fresh is read again anyway."""
    path = tmp_path / "keys"
    (first, kept), (second, other) = a_key(), a_key()
    book = KeyBook(written(path, kept))
    at_ns = path.stat().st_mtime_ns
    path.write_bytes(encode_file(ApiKeyFile(1, (other,))))
    os.utime(path, ns=(at_ns, at_ns))
    look(book)
    assert (book.caller(first, NOW_MS), book.caller(second, NOW_MS) is None) == (None, False)


def broken(path: Path) -> list[tuple[Callable[[], object], str]]:
    def replace_by(make: Callable[[Path], object]) -> None:
        path.unlink()
        make(path)

    return [
        (lambda: path.write_bytes(path.read_bytes()[:-5]), "damaged"),
        (lambda: path.write_bytes(b""), "damaged"),
        (path.unlink, "No such file"),
        (lambda: path.chmod(0o666), "others than its owner can write it"),
        (lambda: replace_by(Path.mkdir), "Is a directory|no file"),
        (lambda: replace_by(os.mkfifo), "no file"),
    ]


@pytest.mark.parametrize("at", range(6))
def test_a_broken_file_takes_nothing_away_and_is_told(
    at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    shown, kept = a_key()
    book = KeyBook(written(path, kept))
    breaks, why = broken(path)[at]
    breaks()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            look(book)
    assert book.caller(shown, NOW_MS) is not None
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "can't be used" in line.message
    assert any(each in line.message for each in why.split("|"))


def test_a_file_that_is_read_while_it_is_written_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    """Somebody's editor doesn't replace it at once: every beginning of it may be met."""
    path = tmp_path / "keys"
    (first, kept), (second, other) = a_key(), a_key()
    book = KeyBook(written(path, kept))
    whole = encode_file(ApiKeyFile(1, (other,)))
    for size in sorted({*range(0, len(whole), 5), *range(len(whole) - 5, len(whole))}):
        path.write_bytes(whole[:size])
        look(book)
        opens = [book.caller(key, NOW_MS) is not None for key in (first, second)]
        is_whole = whole[size:].isspace()  # but for the end of its last line
        assert opens == ([False, True] if is_whole else [True, False])


def test_a_mended_file_holds_again_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    (first, kept), (second, other) = a_key(), a_key()
    book = KeyBook(written(path, kept))
    path.write_bytes(b"{")
    look(book)
    written(path, kept, other)
    look(book)
    assert book.caller(first, NOW_MS) is not None
    assert book.caller(second, NOW_MS) is not None
    assert any("can be read again" in each for each in caplog.messages)


def test_a_gateway_does_not_start_with_a_file_of_no_use(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(ApiKeyError, match="durabill keys create"):
        KeyBook(path)
    path.write_bytes(b"{}]")
    with pytest.raises(ApiKeyError, match="damaged"):
        KeyBook(path)
    written(path, a_key()[1]).chmod(0o620)
    with pytest.raises(ApiKeyError, match="chmod 600"):
        KeyBook(path)

"""API keys: what they look like, and the file of their hashes. Pure.

    dbk_<id>_<secret>      id: 12 letters or digits, no secret · secret: 64 hexadecimal digits

Theory: the secret is 256 random bits, so its SHA-256 can't be turned back, and a slow hash would
buy nothing but work for us on each guess. The id finds the key, the hashes are compared in constant
time. The file has hashes alone: who can read it can't ask anything. Who can write it can make keys.

    {"version": 1, "keys": [{"id": …, "tenant": …, "client": …, "scopes": […], "sha256": …,
                             "created_ms": …, "expires_ms": null, "revoked_ms": null,
                             "replaced_by": null}]}
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from durabill.schemas.errors import DurabillError
from durabill.schemas.tenants import TENANT_PATTERN

PREFIX = "dbk_"
ID_CHARS = 12
SECRET_BYTES = 32
KEY_CHARS = len(PREFIX) + ID_CHARS + 1 + 2 * SECRET_BYTES
FILE_BYTES_MAX = 64 * 1024 * 1024
CLIENT_PATTERN = r"[A-Za-z0-9._-]{0,64}"
ScopeName = Literal["report", "read", "admin"]
SCOPE_NAMES: tuple[ScopeName, ...] = ("report", "read", "admin")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # no letters that look like others
_ID = rf"[{_ALPHABET}]{{{ID_CHARS}}}"
_CLIENT = re.compile(CLIENT_PATTERN, re.ASCII)
_IS_ID = re.compile(_ID, re.ASCII)
_KEY = re.compile(rf"{PREFIX}({_ID})_([0-9a-f]{{{2 * SECRET_BYTES}}})", re.ASCII)


class ApiKeyError(DurabillError):
    """The file of API keys can't be used, or doesn't allow what was asked; says what to do."""

    exit_code = 2


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a key: whose it is, what it allows, until when. No secret is in it."""

    id: Annotated[str, Meta(pattern=rf"\A{_ID}\Z")]
    tenant: Annotated[str, Meta(pattern=rf"\A{TENANT_PATTERN}\Z")]
    client: Annotated[str, Meta(pattern=rf"\A{CLIENT_PATTERN}\Z")]
    scopes: tuple[ScopeName, ...]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    replaced_by: str | None = None

    def is_live(self, now_ms: int) -> bool:
        """Tell whether it opens anything now."""
        is_over = self.expires_ms is not None and now_ms >= self.expires_ms
        return self.revoked_ms is None and not is_over


class ApiKeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All keys, in the sequence in which they were made."""

    version: Literal[1]
    keys: tuple[ApiKey, ...]


def is_client(text: str) -> bool:
    """Tell whether a text can be a client's name."""
    return _CLIENT.fullmatch(text) is not None


def is_key_id(text: str) -> bool:
    """Tell whether a text has the form of a key's id."""
    return _IS_ID.fullmatch(text) is not None


def looks_secret(text: str) -> bool:
    """Tell whether a text is a key, or begins like one: it belongs on no command line."""
    return text.startswith(PREFIX) and len(text) > len(PREFIX) + ID_CHARS


def id_of(key: str) -> str | None:
    """Return the id of a key as it is shown, None for what can't be one."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]


def hash_of(key: str) -> bytes:
    """Return a key's SHA-256."""
    return hashlib.sha256(key.encode()).digest()


def new_key(
    tenant: str,
    client: str,
    scopes: Iterable[ScopeName],
    *,
    now_ms: int,
    expires_ms: int | None,
    entropy: Callable[[int], bytes],
) -> tuple[str, ApiKey]:
    """Return a new key as it is shown, once, and what is kept of it."""
    value = int.from_bytes(entropy(8), "big")
    key_id = "".join(_ALPHABET[value >> 5 * at & 31] for at in range(ID_CHARS))
    key = f"{PREFIX}{key_id}_{entropy(SECRET_BYTES).hex()}"
    kept = ApiKey(
        id=key_id,
        tenant=tenant,
        client=client,
        scopes=tuple(each for each in SCOPE_NAMES if each in set(scopes)),
        sha256=hash_of(key).hex(),
        created_ms=now_ms,
        expires_ms=expires_ms,
    )
    return key, kept


def decode_file(data: bytes) -> ApiKeyFile:
    """Return what a file of keys says; raise ApiKeyError for anything that isn't wholly right."""
    try:
        found = msgspec.json.decode(data, type=ApiKeyFile)
    except (ValueError, RecursionError) as error:
        raise ApiKeyError(f"it is damaged, or no file of API keys: {error}") from error
    ids = [each.id for each in found.keys]
    if len(set(ids)) != len(ids):
        raise ApiKeyError("it is damaged: two keys have the same id")
    return found


def encode_file(file: ApiKeyFile) -> bytes:
    """Return a file of keys, a line a key."""
    lines = b",\n".join(msgspec.json.encode(each) for each in file.keys)
    return b'{"version":%d,"keys":[\n%b\n]}\n' % (file.version, lines)

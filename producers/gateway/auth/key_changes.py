"""What is done to a file of API keys: a key is made, replaced or revoked. Pure.

A change gives a new file; who writes it, and how, is the caller's.
"""

from collections.abc import Callable, Sequence

import msgspec

from durabill.producers.gateway.auth.api_keys import (
    ApiKey,
    ApiKeyError,
    ApiKeyFile,
    ScopeName,
    new_key,
)

Entropy = Callable[[int], bytes]


def find(file: ApiKeyFile, key_id: str) -> ApiKey:
    """Return a key by its id; raise ApiKeyError where there is none."""
    for each in file.keys:
        if each.id == key_id:
            return each
    raise ApiKeyError(f"there is no key {key_id!r}; `durabill keys list` shows all")


def create(
    file: ApiKeyFile,
    tenant: str,
    client: str,
    scopes: Sequence[ScopeName],
    *,
    now_ms: int,
    expires_ms: int | None,
    entropy: Entropy,
) -> tuple[ApiKeyFile, str, ApiKey]:
    """Return the file with a new key, the key as it is shown, and what is kept of it."""
    shown, kept = new_key(
        tenant, client, scopes, now_ms=now_ms, expires_ms=expires_ms, entropy=entropy
    )
    if any(each.id == kept.id for each in file.keys):
        raise ApiKeyError("a new key has the id of another one: the machine's entropy is broken")
    return _with(file, kept), shown, kept


def rotate(
    file: ApiKeyFile, key_id: str, *, now_ms: int, grace_ms: int, entropy: Entropy
) -> tuple[ApiKeyFile, str, ApiKey]:
    """Return the file with a key in place of another one, which ends after the grace.

    The new one is the same tenant's and client's, and may do the same; it lasts as long as the old
    one was made to last. Two are live at once, never three: raises ApiKeyError while a key before
    the old one is live as well, and for a key that is not live, or was replaced already.
    """
    old = find(file, key_id)
    if not old.is_live(now_ms):
        raise ApiKeyError(f"key {key_id} is not live any more; `durabill keys create` makes one")
    for each in file.keys:
        if each.id == old.replaced_by and each.is_live(now_ms):
            raise ApiKeyError(f"key {key_id} was replaced by {each.id}: rotate that one")
        if each.replaced_by == key_id and each.is_live(now_ms):
            raise ApiKeyError(
                f"key {each.id}, which {key_id} replaced, is still live: `durabill keys revoke"
                f" {each.id}` ends it, once nobody uses it any more"
            )
    lifetime_ms = None if old.expires_ms is None else old.expires_ms - old.created_ms
    expires_ms = None if lifetime_ms is None else now_ms + lifetime_ms
    grown, shown, kept = create(
        file,
        old.tenant,
        old.client,
        old.scopes,
        now_ms=now_ms,
        expires_ms=expires_ms,
        entropy=entropy,
    )
    end_ms = now_ms + grace_ms
    ends = end_ms if old.expires_ms is None else min(old.expires_ms, end_ms)
    ending = msgspec.structs.replace(old, expires_ms=ends, replaced_by=kept.id)
    return _with(grown, ending), shown, kept


def revoke(file: ApiKeyFile, key_id: str, now_ms: int) -> tuple[ApiKeyFile, ApiKey]:
    """Return the file with a key that opens nothing any more; one that was revoked stays so."""
    old = find(file, key_id)
    if old.revoked_ms is not None:
        return file, old
    revoked = msgspec.structs.replace(old, revoked_ms=now_ms)
    return _with(file, revoked), revoked


def _with(file: ApiKeyFile, key: ApiKey) -> ApiKeyFile:
    """Return the file with a key, in the place of the one that has its id, else at the end."""
    if all(each.id != key.id for each in file.keys):
        return ApiKeyFile(file.version, (*file.keys, key))
    return ApiKeyFile(file.version, tuple(key if each.id == key.id else each for each in file.keys))

"""The API keys that a gateway knows, from a file that is read again when it changes."""

import hmac
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from durabill.producers.gateway.auth.api_keys import (
    FILE_BYTES_MAX,
    ApiKey,
    ApiKeyError,
    ApiKeyFile,
    decode_file,
    hash_of,
    id_of,
)
from durabill.producers.gateway.auth.watched_file import WatchedFile
from durabill.producers.gateway.caller import Caller
from durabill.schemas.errors import DurabillError

_NOBODYS_HASH = bytes(32)
_Entry = tuple[bytes, ApiKey | None, Caller | None]
_NOBODY: _Entry = (_NOBODYS_HASH, None, None)


class KeyBook:
    """Who has shown a key. Raises ApiKeyError where the file can't be read at the start."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = WatchedFile(
                path,
                "the file of API keys",
                decode_file,
                bytes_max=FILE_BYTES_MAX,
                on_change=self._take,
            )
        except FileNotFoundError as error:
            raise ApiKeyError(
                f"there is no file of API keys at {path}: `durabill keys create` makes it, or"
                " DURABILL_API_KEYS_FILE names another"
            ) from error
        except (DurabillError, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise ApiKeyError(f"the file of API keys {path} can't be used: {why}") from error
        self._entries: dict[str, _Entry] = {}
        self._take(self._file.content)

    def caller(self, key: str, now_ms: int) -> Caller | None:
        """Return whose a key is, None for one that opens nothing.

        The way is the same for an id that nobody has and for a wrong secret: a look-up, a hash, and
        a comparison in constant time.
        """
        key_id = id_of(key)
        if key_id is None:
            return None  # not of the form: no key of anybody's
        right, kept, caller = self._entries.get(key_id, _NOBODY)
        is_right = hmac.compare_digest(hash_of(key), right)
        if not is_right or kept is None or not kept.is_live(now_ms):
            return None
        return caller

    def watch(self) -> Coroutine[Any, Any, None]:
        """Return what follows the file's changes, until cancelled."""
        return self._file.watch()

    def _take(self, file: ApiKeyFile) -> None:
        self._entries = {
            each.id: (
                bytes.fromhex(each.sha256),
                each,
                Caller(each.tenant, each.client, frozenset(each.scopes), each.id),
            )
            for each in file.keys
        }

"""Changes the file of API keys: one process at a time, and all at once or not at all."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from durabill.deploy.files import data_folder, open_private, whole_file

if TYPE_CHECKING:
    from durabill.producers.gateway.auth.api_keys import ApiKeyFile

T = TypeVar("T")


def read_key_file(path: Path) -> "ApiKeyFile":
    """Return what the file says, no keys where there is none; raise ApiKeyError."""
    from durabill.producers.gateway.auth.api_keys import (
        FILE_BYTES_MAX,
        ApiKeyError,
        ApiKeyFile,
        decode_file,
    )

    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        return decode_file(data)
    except FileNotFoundError:
        return ApiKeyFile(1, ())
    except OSError as error:
        raise ApiKeyError(f"{path} can't be read: {error.strerror or error}") from error
    except ApiKeyError as error:
        raise ApiKeyError(f"{path}: {error}. Nothing was changed: restore it first") from error


def change_key_file(path: Path, change: "Callable[[ApiKeyFile], tuple[ApiKeyFile, T]]") -> T:
    """Write what `change` makes of the file, and return what else it gives.

    The file, with mode 600, is replaced once the new one is whole; a gateway reads it a second
    later. Raises ApiKeyError.
    """
    from durabill.producers.gateway.auth.api_keys import ApiKeyError, encode_file

    try:
        if not path.parent.exists():
            data_folder(path.parent)
        with _locked(path):
            before = read_key_file(path)
            after, result = change(before)
            if after != before:
                with whole_file(path) as file:
                    file.write(encode_file(after).decode())
            return result
    except OSError as error:
        raise ApiKeyError(f"{path} can't be written: {error.strerror or error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside the file: the file itself is another one after each change."""
    handle = open_private(str(path.with_name(f".{path.name}.lock")), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

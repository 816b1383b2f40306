"""What a long-running process says of itself: what it is, that it is ready, that it has stopped."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from durabill import __version__
from durabill.deploy.commands.ask_workers import workers_dir
from durabill.deploy.terminal import say

if TYPE_CHECKING:
    from durabill.stream_processors.settings import Settings

process_log = logging.getLogger("durabill.process")


def introduce(name: str, settings: "Settings", **what: str) -> None:
    """Log in one line what a process is, before it joins anything."""
    told = {
        "application id": settings.application_id,
        **{key.replace("_", " "): value for key, value in what.items()},
        "Kafka": settings.bootstrap_servers,
        "pid": str(os.getpid()),
    }
    text = ", ".join(f"{key} {value}" for key, value in told.items())
    process_log.info("durabill %s %s: %s", __version__, name, text)


@contextlib.contextmanager
def stopping(name: str) -> Iterator[None]:
    """Log that a process has stopped because it was told to."""
    try:
        yield
    except SystemExit as end:  # this is how Faust returns
        if end.code not in (None, 0):
            raise
    process_log.info("%s stopped", name)


def since_s(began_s: float) -> float:
    """Return the seconds since a moment of the monotonic clock."""
    return time.monotonic() - began_s


def check_address(name: str, host: str, port: int) -> None:
    """Raise StackError where a process could not listen, before it connects to anything."""
    from durabill.deploy.local.ports import why_not_listen
    from durabill.deploy.local.stack import StackError

    why = why_not_listen(host, port)
    if why is not None:
        raise StackError(
            f"the {name} can't listen on {host}:{port}: {why}. Choose another --{name}-port"
            f" (0 finds a free one), or another --{name}-host"
        )


@contextlib.contextmanager
def registered(settings: "Settings", url: str) -> Iterator[None]:
    """Leave word of this worker in the data folder, so that commands beside it find it.

    Without that the worker goes on, after a note. In a folder of another user root writes and
    removes nothing.
    """
    from durabill.deploy.files import data_folder, open_private, private_folder
    from durabill.deploy.local.stack import birth_mark

    pid = os.getpid()
    path = workers_dir(settings) / f"{pid}.json"
    with contextlib.ExitStack() as leave:
        try:
            data_folder(Path(settings.data_dir))
            for folder in (path.parent.parent, path.parent):  # made beside, a parent is passable
                private_folder(folder)
            path.unlink(missing_ok=True)  # of a process that had our number, and was killed
            with open(path, "x", opener=open_private) as file:
                leave.callback(path.unlink, missing_ok=True)
                json.dump({"url": url, "pid": pid, "birth_mark": birth_mark(pid)}, file)
        except OSError as error:
            leave.close()
            why = error.strerror or error
            say(f"note: {path} can't be written ({why}); give DURABILL_WORKER_URLS instead")
        yield

"""How a worker's process ends on an error: at once, with the reason in the log and exit code."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from durabill.schemas.errors import SegmentsLost, is_told

log = logging.getLogger("durabill.worker")


FindLost = Callable[[SegmentsLost], str]
"""Given what is lost, returns a sentence that says where it may be; "" for nothing to say."""


def know_nothing(lost: SegmentsLost) -> str:
    """Say nothing of lost segments."""
    return ""


def die(error: BaseException, find_lost: FindLost = know_nothing) -> NoReturn:
    """End the process: whoever restarts it finds a consistent checkpoint and replays the rest.

    Nothing is unwound: Faust would restart the agent and leave a hole in the log.
    """
    told = is_told(error)
    if told:
        log.critical("%s", error)
        if isinstance(error, SegmentsLost) and (word := find_lost(error)):
            log.critical("%s", word)
    else:
        log.critical("the worker stops on an error of its own", exc_info=error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", 70) if told else 70)

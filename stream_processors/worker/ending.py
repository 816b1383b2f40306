"""How a worker's process ends on an error: at once, with the reason in the log and exit code."""

import logging
import os
import sys
from typing import NoReturn

from durabill.schemas.errors import is_told

log = logging.getLogger("durabill.worker")


def die(error: BaseException) -> NoReturn:
    """End the process: whoever restarts it finds a consistent checkpoint and replays the rest.

    Nothing is unwound: Faust would restart the agent and leave a hole in the log.
    """
    told = is_told(error)
    if told:
        log.critical("%s", error)
    else:
        log.critical("the worker stops on an error of its own", exc_info=error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(getattr(error, "exit_code", 70) if told else 70)

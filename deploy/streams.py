"""Standard streams that may be closed, full or gone: told in one line, never half a result.

Python drops what is printed on a closed standard output without a word, prints what is meant for a
closed standard error among the results, and ends with a traceback, or with exit code 120, where a
disk is full. A file or a socket that is opened later would even get the number of the closed one.
"""

import errno
import io
import os
import sys
from typing import Any

from durabill.schemas.errors import DurabillError

BROKEN_PIPE_EXIT_CODE = 141
"""As if SIGPIPE had ended us: the reader has seen enough."""


class OutputError(DurabillError):
    """What a command has to say can't be written to standard output."""

    def __init__(self, cause: OSError) -> None:
        is_closed = cause.errno == errno.EBADF
        why = "it is closed" if is_closed else cause.strerror or str(cause)
        super().__init__(f"standard output can't be written: {why}")
        self.is_gone = isinstance(cause, BrokenPipeError)
        if self.is_gone:
            self.exit_code = BROKEN_PIPE_EXIT_CODE


class _Output(io.TextIOWrapper):
    """Standard output whose failures are OutputErrors. What it can't encode is shown escaped."""

    def write(self, text: str, /) -> int:
        """Write text."""
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        """Write what is waiting."""
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from error


def guard_streams() -> None:
    """Have standard streams that are closed be there, and failures of standard output told."""
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDONLY)  # takes the least number that is free
    if 2 in closed or sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    if 1 in closed or sys.stdout is None:
        raw: Any = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115
        sys.stdout = _Output(io.BufferedWriter(raw), encoding="utf-8")
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        encoding, is_lines = sys.stdout.encoding, sys.stdout.line_buffering
        buffer: Any = sys.stdout.detach()
        sys.stdout = _Output(
            buffer, encoding=encoding, errors="backslashreplace", line_buffering=is_lines
        )


def finish_streams() -> None:
    """Write what is waiting; raise OutputError where it can't be."""
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:
            _give_up(2)
    sys.stdout.flush()


def give_up_output() -> None:
    """Have what waits for standard output go nowhere: that it can't be written is told already."""
    _give_up(1)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _give_up(number: int) -> None:
    """Have what is left go nowhere: Python tries again at its end, and fails with code 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)

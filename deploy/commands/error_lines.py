"""What a command says where it can't do what it was asked: a line that says what to do."""

import errno
import shlex
import sys
from collections.abc import Iterator, Sequence

from typer import TyperException

from durabill.deploy.terminal import plain, shown
from durabill.schemas.errors import DurabillError, SettingsError
from durabill.schemas.extras import missing_for

_FILE_ERRORS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
        *(errno.EMFILE, errno.ENFILE),
    }
)
"""What files and disks bring about: the user's to mend. Other system errors are bugs of ours."""

_ADVICE = {
    errno.ENOSPC: "The disk is full: make room, or give a --data-dir on another one",
    errno.EDQUOT: "Make room, or give a --data-dir on another disk",
    errno.EROFS: "Give a --data-dir on another disk",
    errno.ENOTDIR: "Give another --data-dir",
    errno.EACCES: "Run this as the user who made it, or give another --data-dir",
    errno.EPERM: "Run this as the user who made it, or give another --data-dir",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`)",
}


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise SettingsError for arguments that are no UTF-8: no name or number of ours may hold any.

    Python keeps such bytes as lone surrogates, which would fail wherever they get to.
    """
    problems = []
    for text in arguments:
        try:
            text.encode()
        except UnicodeEncodeError:
            problems.append(f"the argument {shown(text)} is no text in UTF-8")
    if problems:
        raise SettingsError(problems)


def error_lines(error: Exception, arguments: Sequence[str]) -> list[str] | None:
    """Return what to tell the user, a line each; None if `error` is a bug of ours."""
    if isinstance(error, ImportError):
        missing = missing_for(arguments, error.name)
        return None if missing is None else [str(missing)]
    if isinstance(error, DurabillError):
        return str(error).split("\n")
    return next(_explain_foreign(error, arguments), None)


def _explain_foreign(error: Exception, arguments: Sequence[str]) -> Iterator[list[str]]:
    if isinstance(error, TyperException):
        yield _wrong_use(error, arguments)
    if _is_a(error, "confluent_kafka", "KafkaException"):
        cause = error.args[0] if error.args else error
        said = cause.str() if hasattr(cause, "str") else str(cause)
        yield [
            f"Kafka: {said}",
            "Is it running, and is DURABILL_BOOTSTRAP_SERVERS (with its security settings) right?",
        ]
    if _is_a(error, "psycopg", "Error"):
        from durabill.stream_processors.dsn import error_text

        yield [
            f"PostgreSQL: {error_text(error)}",
            "Is it running, and is DURABILL_LEDGER_DSN right?",
        ]
    if isinstance(error, OSError) and error.errno in _FILE_ERRORS:
        where = "" if error.filename is None else f"{error.filename}: "
        advice = _ADVICE.get(error.errno)
        yield [f"{where}{error.strerror}" + (f". {advice}" if advice else "")]


def _is_a(error: Exception, module: str, name: str) -> bool:
    found = sys.modules.get(module)
    return found is not None and isinstance(error, getattr(found, name))


def _wrong_use(error: Exception, arguments: Sequence[str]) -> list[str]:
    """Return what is wrong with a command line, in one line; nothing if it got the help instead."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return []
    context = getattr(error, "ctx", None)
    path = "durabill" if context is None else context.command_path
    tell = getattr(error, "format_message", error.__str__)
    message = plain(" ".join(tell().split("\n"))).rstrip(".")
    hint = _hint(error, path, arguments)
    return [f"{message}. {hint}See: {path} --help"]


def _hint(error: Exception, path: str, arguments: Sequence[str]) -> str:
    """Return what was meant, perhaps: a text that begins with a dash, or an order's number."""
    command = path.rpartition(" ")[2]
    if type(error).__name__ == "NoSuchOption" and not getattr(error, "possibilities", None):
        option = str(getattr(error, "option_name", ""))
        text = next((each for each in arguments if each.startswith(option)), option)
        if command == "resend" and not text.startswith("--"):
            return "A place is PARTITION/OFFSET, such as 0/17. "
        if command in ("order", "explain") or (command == "totals" and not text.startswith("--")):
            number, look = plain(shlex.quote(text)), command.replace("totals", "order")
            return f"What begins with a dash goes after `--`: durabill {look} -- {number}. "
    if command == "totals" and "unexpected extra argument" in str(error):
        return "For one order: durabill order NUMBER. "
    if command == "dead-letters" and "No such command" in str(error):
        return "`list` lists them, `resend` sends them back. "
    return ""

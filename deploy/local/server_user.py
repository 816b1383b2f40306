"""PostgreSQL's own user, for when root starts it: what is done as that user, and how.

PostgreSQL refuses to run as root. Its folder then belongs to another user, who may put a link to
any file of the machine in the place of a name in it, at any moment. So root does nothing there by
name; it runs a process of that user.
"""

import contextlib
import os
import pwd
import subprocess
from pathlib import Path

from durabill.deploy.local.stack import Account, StackError, as_account, system_tools_allowed

WAIT_S = 30.0


def hand_over(folder: Path, account: Account) -> None:
    """Makes a folder, in one of root's own, and gives it to another user, empty.

    One that the user has already stays as it is. Raises StackError for anything else that lies
    there: a link, or a folder that others may write to, would have root give away what it points
    to.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise StackError(
            f"{folder} must be a folder, and no link to one ({error.strerror}). Remove it."
        ) from error
    try:
        found = os.fstat(handle)
        if found.st_uid == account.uid:
            return
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or os.listdir(handle):
            raise StackError(
                f"{folder} is neither empty nor user {account.name}'s, as whom PostgreSQL runs when"
                " started by root. Remove it, or give another --data-dir."
            )
        os.fchown(handle, account.uid, account.gid)
    finally:
        os.close(handle)


def server_account() -> Account | None:
    """The user that PostgreSQL runs as; None where the caller, not being root, will do."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody") if system_tools_allowed() else ("nobody",):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise StackError(
        "PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody'. "
        "Run this as an ordinary user, or set DURABILL_LEDGER_DSN to an existing PostgreSQL."
    )


def can_enter(folder: Path, account: Account) -> bool:
    """Whether the user can step into the folder."""
    # Asked of the kernel as that user: modes alone do not tell of ACLs, mounts or user namespaces.
    return run_as(account, "/bin/sh", "-c", 'cd "$1"', "sh", folder).returncode == 0


def run_as(
    account: Account | None,
    *command: str | Path,
    pipe: int = subprocess.DEVNULL,
    wait_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command as the server's user, with `pipe` for its input. Raises StackError."""
    try:
        return subprocess.run(
            [str(part) for part in command],
            stdin=pipe,
            capture_output=True,
            text=True,
            errors="replace",
            env=server_environment(),
            cwd="/",
            umask=0o077,
            timeout=wait_s or WAIT_S,
            check=False,
            **as_account(account),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{Path(command[0]).name} failed: {error}") from error


def server_environment() -> dict[str, str]:
    """What PostgreSQL's programs need of the caller's environment, and nothing else.

    What else is there may steer them (PGDATA, PGPORT), or be a secret: the user that a server runs
    as can read its environment.
    """
    keep = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH")
    return {name: text for name, text in os.environ.items() if name in keep or name[:3] == "LC_"}

"""Secrets don't belong on a command line, which every user of a machine can read (`ps`)."""

from collections.abc import Mapping
from typing import Any

from deploy.commands_common import say
from stream_processors.dsn import has_secret
from stream_processors.errors import SettingsError
from stream_processors.settings import PREFIX, SECRETS

PASSWORDS = ("sasl_password", "ssl_key_password")
"""Settings that are passwords: their flags are refused."""

assert set(PASSWORDS) < set(SECRETS)


def check_flags(flags: Mapping[str, Any]) -> None:
    """Raise SettingsError for passwords given as flags; warn of a DSN that holds one."""
    problems = [
        f"--{name.replace('_', '-')} is not taken: every user of this machine can read a command"
        f" line. Set {PREFIX}{name.upper()}, or {PREFIX}{name.upper()}_FILE to a file that holds it"
        for name in PASSWORDS
        if flags.get(name) is not None
    ]
    if problems:
        raise SettingsError(problems)
    dsn = flags.get("ledger_dsn")
    if dsn and has_secret(dsn):
        say(
            "warning: --ledger-dsn holds a password, and every user of this machine can read a"
            f" command line. Set {PREFIX}LEDGER_DSN, or {PREFIX}LEDGER_DSN_FILE to a file that"
            " holds it; or leave the password to libpq's password file (~/.pgpass)"
        )

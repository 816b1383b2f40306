"""Secrets don't belong on a command line, which every user of a machine can read (`ps`)."""

import re
from collections.abc import Mapping
from typing import Any

from durabill.deploy.terminal import say
from durabill.schemas.errors import SettingsError
from durabill.stream_processors.settings import PREFIX, SECRETS

PASSWORDS = ("sasl_password", "ssl_key_password")
"""Settings that are passwords: their flags are refused."""

assert set(PASSWORDS) < set(SECRETS)


def check_flags(flags: Mapping[str, Any]) -> None:
    """Raise SettingsError for passwords given as flags; warn of a DSN or URL that holds one."""
    problems = [
        f"--{name.replace('_', '-')} is not taken: every user of this machine can read a command"
        f" line. Set {PREFIX}{name.upper()}, or {PREFIX}{name.upper()}_FILE to a file that holds it"
        for name in PASSWORDS
        if flags.get(name) is not None
    ]
    if problems:
        raise SettingsError(problems)
    for name, value in flags.items():
        if value and _holds_secret(name, value):
            say(
                f"warning: --{name.replace('_', '-')} holds a password, and every user of this"
                f" machine can read a command line. Set {PREFIX}{name.upper()} instead"
                + (f", or {PREFIX}{name.upper()}_FILE" if name in SECRETS else "")
            )


def _holds_secret(name: str, value: str) -> bool:
    if name == "ledger_dsn":
        from durabill.stream_processors.dsn import has_secret  # psycopg is for those who need it

        return has_secret(value)
    return re.search(r"://[^/?#]*@", value) is not None

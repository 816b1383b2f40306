"""A package's public names, each imported when it is first used (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy_names(
    package: str, modules: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the package's `__getattr__` and `__dir__`.

    `modules` says which names are in which module of the package. Type checkers must not see the
    result: to them, a module with a `__getattr__` has every name there is.
    """
    homes = {name: module for module, names in modules.items() for name in names}
    known = vars(sys.modules[package])

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        known[name] = value
        return value

    return get, lambda: sorted({*known, *homes})

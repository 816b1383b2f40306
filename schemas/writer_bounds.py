"""Which writers' schemas may be read: whoever registers one must not be able to stop a worker.

A reader counts an array's items one by one, also where they take no bytes: a value of 16 bytes can
have 2^62 of them. And it goes as deep as a value does, if its schema contains itself, until the
process has no stack left. So schemas of both kinds are none that ours can be resolved with.
"""

from collections.abc import Mapping
from typing import Any

DEPTH_MAX = 200
"""So many levels of lists and objects in its JSON are read; ours has four."""


def check_bounded(schema: Mapping[str, Any]) -> None:
    """Raise ValueError for a schema by which few bytes can take unbounded time or stack.

    It contains itself, has arrays of what takes no bytes, or is nested over DEPTH_MAX levels.
    """
    level: list[Any] = [schema]
    for _ in range(DEPTH_MAX + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(f"it is nested over {DEPTH_MAX} levels deep")


def check_canonical(schema: Mapping[str, Any]) -> None:
    """Raise ValueError as `check_bounded` does, of what only the canonical form shows."""
    _takes_bytes(schema, {})


def _takes_bytes(schema: Any, named: dict[str, bool | None]) -> bool:
    """Return whether each value takes a byte or more; `named` has None for types that are open."""
    match schema:
        case str() if schema in named:
            is_sure = named[schema]
            if is_sure is None:
                raise ValueError(f"{schema} contains itself")
            return is_sure
        case str():
            return schema != "null"
        case list():
            for each in schema:
                _takes_bytes(each, named)
            return True
        case {"type": "array", "items": items}:
            if not _takes_bytes(items, named):
                raise ValueError("it has an array of what takes no bytes")
            return True
        case {"type": "map", "values": values}:
            _takes_bytes(values, named)
            return True
        case {"type": "fixed", "name": name, "size": size}:
            named[name] = is_sure = bool(size > 0)
            return is_sure
        case {"fields": fields, "name": name}:
            named[name] = None
            sure = [_takes_bytes(each["type"], named) for each in fields]  # all: each may be wrong
            named[name] = is_sure = any(sure)
            return is_sure
        case {"name": name}:
            named[name] = True
    return True

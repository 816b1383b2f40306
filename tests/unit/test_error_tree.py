"""Every error of the tree is drawn in it, and nothing is drawn that isn't there."""

import ast
import re

from durabill.producers.sdk.session import ProducerError
from durabill.schemas import errors
from tests.unit.documents import ROOT

PACKAGES = ("schemas", "producers", "stream_processors", "deploy")


def bases() -> dict[str, set[str]]:
    """Return the names of what each class of ours inherits from."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    names = {each.id for each in node.bases if isinstance(each, ast.Name)}
                    found.setdefault(node.name, set()).update(names)
    return found


def below(root: str) -> set[str]:
    """Return a class and all that inherit from it."""
    known, parents = {root}, bases()
    while more := {name for name, above in parents.items() if above & known} - known:
        known |= more
    return known


def drawn(text: str) -> set[str]:
    """Return the names in a drawing of a tree."""
    return set(re.findall(r"[├└]── (\w+)", text))


def test_the_trees_name_every_error() -> None:
    producers = below("ProducerError")
    assert drawn(ProducerError.__doc__ or "") == producers - {"ProducerError"}
    rest = below("DurabillError") - producers - {"DurabillError"}
    assert drawn(errors.__doc__ or "") == rest | {"ProducerError"}

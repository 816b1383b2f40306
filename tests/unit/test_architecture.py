"""ARCHITECTURE.md beside the program: rooms, the order of effects, the glossary."""

import re

from durabill.stream_processors.worker.effect_order import Step
from tests.unit.documents import ROOT, rows_of, section
from tests.unit.test_tidy import FLOORS, PACKAGES

PAGE = "ARCHITECTURE.md"
TERMS = rows_of(section(PAGE, "## Glossary"))


def test_rooms_and_what_they_may_import() -> None:
    told = {
        room.strip("`"): set(re.findall(r"`([a-z_.]+)`", below))
        for room, _, below in rows_of(section(PAGE, "## Rooms and floors"))
    }
    assert told == FLOORS


def test_the_order_of_effects() -> None:
    part = section(PAGE, "## The order of effects")
    steps = [row[1].strip("`") for row in rows_of(part)]
    taking_over = re.findall(r"`([a-z]+)`", part[part.index("Taking a partition over") :])
    assert [*steps, *taking_over] == [step.value for step in Step]


def test_terms_are_said_once() -> None:
    names = [name for name, _ in TERMS]
    assert len(names) == len(set(names))
    assert all(meaning.endswith(".") for _, meaning in TERMS)


def test_classes_of_the_glossary_are_there() -> None:
    """A name that the code has left behind would send its reader looking in vain."""
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    )
    defined = set(re.findall(r"^class (\w+)", source, re.M))
    named = {name for row in TERMS for cell in row for name in re.findall(r"`([A-Z]\w+)`", cell)}
    assert named - defined == set()

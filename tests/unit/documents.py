"""The documents that readers have, and what tests take out of them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
"""All that is written for readers; `tests/bench/results.md` is made by a program."""

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)


def text_of(name: str) -> str:
    """Return a document by its path below the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[tuple[str, str]]:
    """Return (what stands after the language, content) of a document's blocks of a language."""
    found: list[tuple[str, str]] = _BLOCK.findall(text_of(name))
    split = [(info.partition(" "), content) for info, content in found]
    return [(rest, content) for (word, _, rest), content in split if word == language]


def without_blocks(name: str) -> str:
    """Return a document's prose and tables."""
    return _BLOCK.sub("", text_of(name))


def python_block(start: str) -> str:
    """Return the first Python example of any document that begins with `start`."""
    for path in DOCUMENTS:
        for _, content in blocks(str(path.relative_to(ROOT)), "python"):
            if content.startswith(start):
                return content
    raise LookupError(f"no document has a Python example that begins with {start!r}")


def section(name: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of its level or above."""
    level = heading.index(" ")
    found: list[str] = []
    is_inside = is_code = False
    for line in text_of(name).splitlines():
        is_code ^= line.startswith("```")
        marks = re.match(r"#+(?= )", line)
        if marks and not is_code and len(marks[0]) <= level:
            is_inside = line == heading
        elif is_inside:
            found.append(line)
    assert found, f"{name} has no {heading!r}"
    return "\n".join(found)


def rows_of(table: str) -> list[list[str]]:
    """Return the cells of a table's rows, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]

"""The README: short, and the same as the pages that it leads to."""

import re
import tomllib

from tests.unit.documents import DOCUMENTS, ROOT, blocks, section, text_of

LINES_MAX = 150


def test_it_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= LINES_MAX


def test_every_page_is_led_to() -> None:
    led_to = set(re.findall(r"\]\(([^)#]+)\)", section("README.md", "## Where to read on")))
    pages = {str(each.relative_to(ROOT)) for each in DOCUMENTS}
    assert led_to == (pages - {"README.md"}) | {"LICENSE"}


def test_the_sdk_example_is_the_one_of_its_page() -> None:
    assert blocks("README.md", "python") == blocks("docs/http.md", "python")


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    named = {
        extra
        for _, content in blocks("README.md", "sh")
        for extras in re.findall(r"pip install .*\[([a-z,]+)\]", content)
        for extra in extras.split(",")
    }
    assert named <= set(project["optional-dependencies"])
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or later" in text_of("README.md")


def test_the_guarantees_are_five() -> None:
    told = section("README.md", "## What is guaranteed")
    assert len(re.findall(r"^- \*\*", told, re.M)) == 5


def test_the_numbers_are_measured_ones() -> None:
    """Speed and its ratio, as `make bench` wrote them last."""
    results, shown = text_of("tests/bench/results.md"), text_of("README.md")
    ratio = re.search(r"^\| times Kafka Streams \|[^|]*\| ([\d.]+) \|", results, re.M)
    assert ratio is not None
    assert f"{ratio[1]} times Kafka Streams" in shown
    speed = re.search(r"^\| segments a CPU-second, in order \|[^|]*\| ([\d,]+) \|", results, re.M)
    assert speed is not None
    assert f"some {round(int(speed[1].replace(',', '')) / 1e6)} million segments" in shown

"""What every document says that a program can check: commands, links, files, examples."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from durabill.deploy.commands.cli import app
from durabill.producers.gateway.openapi import openapi
from tests.unit.documents import (
    DOCUMENTS,
    ROOT,
    blocks,
    section,
    text_of,
    without_blocks,
)

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
SHELL = ("", "sh")
LINKS = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILES = re.compile(r"`((?:docs|schemas|producers|stream_processors|deploy|tests|src)/[^`\s]*)`")


# -- commands ---------------------------------------------------------------------------------


def typed_lines(name: str) -> Iterator[str]:
    """Yield what a reader would type: the commands of a document's blocks."""
    for language in SHELL:
        for _, content in blocks(name, language):
            for line in content.splitlines():
                without_comment = re.split(r"(?:^|\s)#", line, maxsplit=1)[0]
                for part in re.split(r"&&|\|\||[|;&]|\$\(|\)\"", without_comment):
                    yield part.strip().removeprefix("$ ")


def told_lines(name: str) -> Iterator[str]:
    """Yield what the text names as code; a command may be there without its arguments."""
    for code in re.findall(r"`([^`\n]+)`", without_blocks(name)):
        yield from (part.strip() for part in code.split("&&"))


def commands(lines: Callable[[str], Iterator[str]]) -> list[tuple[str, str]]:
    """Return (document, line) of every `durabill ...` line."""
    return [
        (name, line)
        for name in NAMES
        for line in dict.fromkeys(lines(name))
        if line.startswith("durabill ")
    ]


def parse(command: Any, name: str, arguments: list[str], parent: Any = None) -> None:
    """Have a command line parsed, values checked, by the real command; nothing is run."""
    context = command.make_context(name, list(arguments), parent=parent)
    rest = [*context._protected_args, *context.args]
    if rest and hasattr(command, "commands"):
        name, subcommand, rest = command.resolve_command(context, rest)
        parse(subcommand, name, rest, context)
    else:
        assert not rest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the files are that the examples read."""
    made = tmp_path_factory.mktemp("reader")
    (made / ".durabill").mkdir()
    for name in NAMES:
        for path in re.findall(r"--(?:check|policy) (\S+\.(?:jsonl|toml))", text_of(name)):
            (made / path).touch()
    return made


@pytest.mark.parametrize(("name", "line"), commands(typed_lines))
def test_a_command_can_be_typed(
    name: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    parse(typer.main.get_command(app), "durabill", shlex.split(line)[1:])


@pytest.mark.parametrize(
    "line", ["durabill worke", "durabill order", "durabill order 1 --row 2", "durabill fleet 1"]
)
def test_what_is_no_command_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|unexpected"):
        parse(typer.main.get_command(app), "durabill", line.split()[1:])


@pytest.mark.parametrize(("name", "line"), commands(told_lines))
def test_a_command_and_its_flags_are_there(name: str, line: str) -> None:
    words = line.replace("COMMAND", "worker").split()[1:]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    flags = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= flags | {"--help"}


def test_every_command_is_in_a_document() -> None:
    found = [*commands(typed_lines), *commands(told_lines)]
    assert {line.split()[1] for _, line in found} >= set(
        typer.main.get_command(app).commands  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_make_target_is_one(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.M))
    lines = [*typed_lines(name), *told_lines(name)]
    used = {line.split()[1] for line in lines if line.startswith("make ")}
    assert used <= targets


# -- links and files --------------------------------------------------------------------------


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return plain.strip().replace(" ", "-")


def anchors_of(path: Path) -> set[str]:
    prose = without_blocks(str(path.relative_to(ROOT)))
    return {anchor_of(each) for each in re.findall(r"^#{1,6} (.+)$", prose, re.M)}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in LINKS.findall(without_blocks(name)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / name).parent / path if path else ROOT / name
        assert place.exists(), target
        assert ROOT in place.resolve().parents, target
        if anchor:
            assert anchor in anchors_of(place.resolve()), target


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_are_there(name: str) -> None:
    for path in FILES.findall(text_of(name)):
        assert (ROOT / path).exists(), path


def test_anchors_are_as_github_makes_them() -> None:
    assert anchor_of("A batch that can't be read") == "a-batch-that-cant-be-read"
    assert anchor_of("Consumers: totals") == "consumers-totals"


# -- examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_compile(name: str) -> None:
    for _, content in blocks(name, "python"):
        compile(content, name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_of_a_kind_that_is_checked(name: str) -> None:
    kinds = re.findall(r"^```(\w*)[^\n]*\n.*?^```$", text_of(name), re.M | re.S)
    assert set(kinds) <= {"", "sh", "python", "sql", "order"}


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_are_named_are_settings(name: str) -> None:
    from durabill.stream_processors.settings import SECRETS, Settings

    known = {each.upper() for each in Settings.__struct_fields__}
    known |= {f"{each.upper()}_FILE" for each in SECRETS}
    known |= {"NO_SYSTEM_TOOLS", "MAVEN_REPOSITORY"}
    assert set(re.findall(r"DURABILL_([A-Z][A-Z_]*[A-Z])", text_of(name))) <= known


def test_the_first_release_has_only_added_things_in_whole_lists() -> None:
    log = text_of("CHANGELOG.md")
    assert re.findall(r"^### (.+)$", log, re.M) == ["Added"]
    assert re.findall(r"\n\n- .*", log.replace("**\n\n- ", "** - ")) == []


def test_as_many_broken_versions_as_the_simulation_has() -> None:
    from tests.sim.mutations import MUTATIONS

    (told,) = re.findall(r"(\d+) deliberately broken", text_of("docs/guarantees.md"))
    assert int(told) == len(MUTATIONS)


def test_every_command_with_something_to_tell_has_json() -> None:
    """`kafka stop` and `postgres stop` say nothing but what goes wrong."""

    def without_json(command: Any, path: str) -> Iterator[str]:
        for name, each in getattr(command, "commands", {}).items():
            yield from without_json(each, f"{path} {name}".strip())
        is_group = hasattr(command, "commands")
        if not is_group and not any("--json" in each.opts for each in command.params):
            yield path

    found = set(without_json(typer.main.get_command(app), ""))
    assert found == {"kafka stop", "postgres stop"}


def test_the_routes_of_the_gateway() -> None:
    lines = re.findall(r"^\|(.*?)\|", section("docs/http.md", "## The HTTP API"), re.M)
    told = set(re.findall(r"`([A-Z]+) (/[^`\s]*)`", " ".join(lines)))
    paths = openapi()["paths"]
    known = {
        (method.upper(), path)
        for path, operations in paths.items()
        for method in operations
        if method in ("get", "post", "put", "delete", "patch")
    }
    assert told - known <= {("GET", "/openapi.json"), ("GET", "/docs")}
    assert known <= told

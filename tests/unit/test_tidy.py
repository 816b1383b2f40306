"""The house rules, checked on the syntax trees: imports, sizes, docstrings, leftovers."""

import ast
import re
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "producers", "stream_processors", "deploy")

FUNCTION_LINES_MAX = 60

VERSION = "durabill.__version__"
"""Stands in the facade, for a build reads it there; every room may tell it."""

# Each room, and those that stand below it: these alone it may import. "producers" means all of it.
FLOORS: dict[str, set[str]] = {
    "schemas": set(),
    "producers": set(),
    "producers.sdk": {"schemas"},
    "producers.gateway": {
        "schemas",
        "producers.sdk",
        "producers.gateway.caller",
        "producers.gateway.auth",
    },
    "producers.gateway.caller": {"schemas"},
    "producers.gateway.auth": {"schemas", "producers.gateway.caller"},
    "producers.fleet": {"schemas", "producers.sdk"},
    "producers.conformance": {"schemas"},
    "stream_processors": set(),
    "stream_processors.core": {"schemas"},
    "stream_processors.engine": {"schemas", "stream_processors.core"},
    "stream_processors.dsn": {"schemas"},
    "stream_processors.settings": {"schemas", "stream_processors.core", "stream_processors.dsn"},
    "stream_processors.kafka": {"schemas", "stream_processors.settings"},
    "stream_processors.worker": {
        "schemas",
        "stream_processors.core",
        "stream_processors.engine",
        "stream_processors.kafka",
        "stream_processors.settings",
    },
    "stream_processors.ledger": {"schemas", "stream_processors.kafka", "stream_processors.dsn"},
    "stream_processors.audit": {
        "schemas",
        "stream_processors.core",
        "stream_processors.engine",
        "stream_processors.kafka",
        "stream_processors.settings",
        "stream_processors.dsn",
        "stream_processors.dead_letters",
        "stream_processors.ledger",
        "stream_processors.audit.seal",
    },
    "stream_processors.audit.seal": {
        "schemas",
        "stream_processors.kafka",
        "stream_processors.dsn",
    },
    "stream_processors.dead_letters": {
        "schemas",
        "stream_processors.engine",
        "stream_processors.kafka",
    },
    "deploy": {"schemas"},
    "deploy.files": {"schemas"},
    "deploy.logs": {"schemas"},
    "deploy.streams": {"schemas"},
    "deploy.terminal": {"schemas"},
    "deploy.migrate": {"schemas", "stream_processors"},
    "deploy.oracle": {"producers", "stream_processors"},
    "deploy.connect": {"schemas", "stream_processors", "deploy.terminal"},
    "deploy.local": {"schemas", "deploy.files"},
    "deploy.topics": {"schemas", "stream_processors"},
    "deploy.asyncapi": {"schemas", "deploy.topics"},
    "deploy.demo": {
        "schemas",
        "producers",
        "stream_processors",
        "deploy.files",
        "deploy.terminal",
        "deploy.migrate",
        "deploy.oracle",
        "deploy.connect",
        "deploy.local",
        "deploy.topics",
    },
    "deploy.commands": {"schemas", "producers", "stream_processors", "deploy"},
}
FILLED = {each for each in FLOORS if each == "schemas" or "." in each}
"""Rooms with files of any name; of the others their `__init__` alone is in the room."""

# Inside core and engine: a lower layer knows nothing of what stands on it.
PURE_LAYERS = tuple(
    f"durabill.stream_processors.{each}"
    for each in (
        "core.intervals",
        "core.opening",
        "core.order",
        "core.admission",
        "core.explain",
        "core.what_if",
        "engine.memory",
        "engine.unpack",
        "engine.batch",
        "engine.standing",
        "engine.policies",
        "engine.verdicts",
        "engine.effects",
        "engine.blocks",
        "engine.checkpoint",
        "engine.slots",
        "engine.openings",
        "engine.restored",
        "engine.timers",
        "engine.steps",
        "engine.orders",
        "engine.table",
        "engine.plain",
        "engine.kernel",
        "engine.scan",
        "engine.row_form",
        "engine.row_index",
        "engine.row_openings",
        "engine.store",
        "engine.row_timers",
        "engine.row_blocks",
        "engine.spill",
        "engine.settlements",
        "engine.columns",
    )
)
ORACLE = ("durabill.producers.fleet.truth", "durabill.producers.fleet.truth_order")
PURE = (
    *PURE_LAYERS,
    "durabill.schemas",
    "durabill.producers.sdk.holds",
    "durabill.producers.gateway.auth.gcra",
    "durabill.producers.gateway.auth.api_keys",
    "durabill.producers.gateway.auth.key_changes",
    "durabill.producers.gateway.auth.issuer_keys",
    "durabill.producers.gateway.auth.tokens",
    "durabill.producers.sdk.session",
    *ORACLE,
    "durabill.producers.sdk.pace",
)
IMPURE = {
    "aiokafka",
    "asyncio",
    "confluent_kafka",
    "faust",
    "kafka",
    "mode",
    "os",
    "psycopg",
    "random",
    "time",
}
LEFTOVER_WORDS = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]  # in pieces, or this file had them
LEFTOVER = re.compile(rf"\b({'|'.join(LEFTOVER_WORDS)})\b")

Rule = Callable[[str, ast.Module, str], Iterator[tuple[int, str]]]
"""Takes a module's dotted name, tree and text; yields (line, what is wrong)."""


def module_name(path: Path) -> str:
    """Return the dotted name by which the module in `path` is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return f"durabill.{name}" if parts[0] in PACKAGES else name.removeprefix("src.")


def room_of(module: str) -> str | None:
    """Return the room that a module is in, None where it is in none."""
    name = module.removeprefix("durabill.")
    rooms = [each for each in FLOORS if name == each or (is_inside(name, each) and each in FILLED)]
    return max(rooms, key=len, default=None)


def is_inside(module: str, package: str) -> bool:
    """Tell whether `module` is `package` or lies in it."""
    return module == package or module.startswith(f"{package}.")


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level
            else:
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"


def full_names(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Imports are absolute and begin with `durabill`: a module would exist twice otherwise."""
    for line, module in imported(tree):
        if module.startswith("."):
            yield line, "relative import"
        elif module.partition(".")[0] in PACKAGES:
            yield line, f"{name} imports {module} without durabill"


def import_direction(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Every file is in a room, and rooms import each other one way only."""
    room = room_of(name)
    if room is None:
        yield 1, f"{name} is in no room"
        return
    for line, module in imported(tree):
        if is_inside(module, "tests"):
            yield line, f"{name} imports {module}"
        elif is_inside(module, "durabill") and module != VERSION:
            target = room_of(module) or module
            if target != room and not any(is_inside(target, each) for each in FLOORS[room]):
                yield line, f"{name} imports {module}, which doesn't stand below it"


def layers(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Inside core and engine the layers import downwards only."""
    level = next((at for at, layer in enumerate(PURE_LAYERS) if is_inside(name, layer)), None)
    if level is None:
        return
    for line, module in imported(tree):
        if is_inside(module, "durabill.stream_processors"):
            known = [at for at, layer in enumerate(PURE_LAYERS) if is_inside(module, layer)]
            if not known or known[0] > level:
                yield line, f"{name} imports {module}, which stands on it"


def purity(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Pure modules know no broker, no database, no clock and no dice."""
    if any(is_inside(name, pure) for pure in PURE):
        for line, module in imported(tree):
            if module.partition(".")[0] in IMPURE:
                yield line, f"the pure module {name} imports {module}"


def sizes(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Functions stay short enough to be read at once; of files see `test_sizes`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > FUNCTION_LINES_MAX:
                yield node.lineno, f"{size} lines in {node.name}, {FUNCTION_LINES_MAX} are allowed"


def leftovers(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """What is still to be done stands in the issues."""
    for line, content in enumerate(text.splitlines(), 1):
        if found := LEFTOVER.search(content):
            yield line, found.group()


def docstrings(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Modules, public functions, classes and methods say what they promise."""
    if ast.get_docstring(tree) is None:
        yield 1, "module without a docstring"
    yield from undocumented(tree.body)


def undocumented(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Yield public definitions in `body`, and in its public classes, that have no docstring."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not overrides_or_overloads(node):
            yield node.lineno, f"{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body)


def overrides_or_overloads(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether the promise stands elsewhere: at the base class or the implementation."""
    names = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
    return bool(names & {"override", "overload", "setter"})


def swallowed(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Nothing is caught in passing: a wrong bill is worse than no bill."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = "" if node.type is None else ast.unparse(node.type)
        if node.type is None:
            yield node.lineno, "bare except"
        silent = all(
            isinstance(each, ast.Pass | ast.Continue)
            or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            for each in node.body
        )
        if silent and caught in {"", "Exception", "BaseException"}:
            yield node.lineno, f"except {caught} that does nothing"


def prints(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Only the command line talks to the terminal."""
    if is_inside(name, "durabill.deploy"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield node.lineno, "print outside deploy"


def asserts_kept(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Asserts are for our bugs and are never switched off, so nothing may happen inside one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple):
            yield node.lineno, "assert of a tuple is always true"


CRASHING = (
    "list_consumer_group_offsets",
    "alter_consumer_group_offsets",
    "delete_consumer_group_offsets",
    "describe_consumer_groups",
    "delete_consumer_groups",
)


def crashes(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Nobody asks a group's coordinator by AdminClient.

    librdkafka 2.16 ends the process by a signal where a coordinator loads, moves or has gone.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in CRASHING:
            yield node.lineno, f"{node.attr} crashes; see group_offsets.py"


def actual_first(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """An assertion names what was found, then what is expected; of literals ruff sees to it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
            left = node.test.left
            if isinstance(left, ast.Name) and left.id in {"expected", "wanted"}:
                yield node.lineno, "what is expected stands on the right"


WAITS = {"flush", "result", "join", "wait", "poll"}
SHORT_S = range(2, 60)
"""Less is meant to pass, mostly in vain; so much only bounds a hang, and is too short for that."""


def short_waits(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Say where a wait that bounds a hang is over before a busy machine has done its work."""
    if name.startswith(("tests.bench", "tests.chaos", "tests.sim")):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            bounds = [*node.args[:1], *(each.value for each in node.keywords)]
            numbers = [each.value for each in bounds if isinstance(each, ast.Constant)]
            if node.func.attr in WAITS and any(each in SHORT_S for each in numbers):
                yield node.lineno, "a wait that bounds a hang is tests.waiting.HANG_S long"


PACKAGE_RULES: tuple[Rule, ...] = (
    full_names,
    import_direction,
    layers,
    purity,
    sizes,
    leftovers,
    docstrings,
    swallowed,
    prints,
    asserts_kept,
    crashes,
)
TEST_RULES: tuple[Rule, ...] = (
    full_names,
    sizes,
    leftovers,
    swallowed,
    crashes,
    actual_first,
    short_waits,
)


def violations(folder: Path, rule: Rule) -> list[str]:
    """Return `file:line: what is wrong` for every Python file below `folder`."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for line, wrong in rule(module_name(path), ast.parse(text), text):
            found.append(f"{path.relative_to(ROOT)}:{line}: {wrong}")
    return found


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_tidy(package: str, rule: Rule) -> None:
    found = violations(ROOT / package, rule)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", TEST_RULES, ids=lambda rule: rule.__name__)
def test_tests_are_tidy(rule: Rule) -> None:
    found = violations(ROOT / "tests", rule)
    assert not found, "\n" + "\n".join(found)


def test_every_room_is_there() -> None:
    for room in FLOORS:
        path = ROOT / Path(*room.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), room


def test_no_floor_is_below_itself() -> None:
    assert list(TopologicalSorter(FLOORS).static_order())


def test_pure_modules_are_there() -> None:
    for module in PURE:
        path = ROOT / Path(*module.split(".")[1:])
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


@pytest.mark.parametrize(
    ("rule", "name", "code"),
    [
        (full_names, "durabill.schemas.x", "from . import topics"),
        (full_names, "tests.x", "def f():\n    import schemas"),
        (full_names, "durabill.deploy.x", "from deploy.local import kafka"),
        (import_direction, "durabill.schemas.x", "from durabill.deploy.local.kafka import Y"),
        (import_direction, "durabill.schemas.x", "from tests.conftest import x"),
        (import_direction, "durabill.producers.sdk.x", "import durabill.stream_processors.core"),
        (import_direction, "durabill.producers.sdk.x", "from durabill.producers.gateway import a"),
        (import_direction, "durabill.deploy.local.x", "from durabill.deploy.demo import run"),
        (import_direction, "durabill.deploy.local.x", "from durabill.deploy.loose import run"),
        (import_direction, "durabill.producers.loose", ""),
        (
            layers,
            "durabill.stream_processors.core.order",
            "from durabill.stream_processors.engine import table",
        ),
        (
            layers,
            "durabill.stream_processors.engine.table",
            "from durabill.stream_processors.engine.columns import x",
        ),
        (purity, "durabill.schemas.x", "import os.path"),
        (
            purity,
            "durabill.stream_processors.engine.table",
            "def f():\n    from time import time",
        ),
        (sizes, "durabill.schemas.x", "def f():\n" + "    x = 1\n" * 60),
        (leftovers, "durabill.schemas.x", f"# {LEFTOVER_WORDS[0]}: more"),
        (
            docstrings,
            "durabill.schemas.x",
            '"""Module."""\nclass A:\n    """A."""\n    def f(self): ...',
        ),
        (swallowed, "durabill.schemas.x", "try:\n    f()\nexcept Exception:\n    pass"),
        (swallowed, "durabill.schemas.x", "try:\n    f()\nexcept:\n    raise"),
        (prints, "durabill.producers.x", "print(1)"),
        (asserts_kept, "durabill.schemas.x", "assert (1, 'text')"),
        (crashes, "durabill.deploy.x", "admin.list_consumer_group_offsets([])"),
        (actual_first, "tests.x", "assert expected == f()"),
        (crashes, "durabill.deploy.x", "admin.describe_consumer_groups([])"),
        (short_waits, "tests.x", "assert producer.flush(30) == 0"),
        (short_waits, "tests.x", "future.result(timeout=5)"),
    ],
)
def test_each_rule_finds_its_violation(rule: Rule, name: str, code: str) -> None:
    assert len(list(rule(name, ast.parse(code), code))) == 1

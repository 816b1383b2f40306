"""The house rules, checked on the syntax trees: imports, sizes, docstrings, leftovers."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

IMPORTS_ALLOWED = {
    "schemas": {"schemas"},
    "producers": {"schemas", "producers"},
    "stream_processors": {"schemas", "stream_processors"},
    "deploy": {"schemas", "producers", "stream_processors", "deploy"},
}
# Inside the stream processor: a lower layer knows nothing of what stands on it.
PURE_LAYERS = (
    "stream_processors.errors",
    "stream_processors.intervals",
    "stream_processors.order",
    "stream_processors.memory",
    "stream_processors.unpack",
    "stream_processors.batch",
    "stream_processors.effects",
    "stream_processors.blocks",
    "stream_processors.slots",
    "stream_processors.steps",
    "stream_processors.table",
    "stream_processors.kernel",
    "stream_processors.row_form",
    "stream_processors.store",
    "stream_processors.events",
    "stream_processors.columns",
)
ORACLE = ("producers.truth", "producers.truth_order")
PURE = (*PURE_LAYERS, "schemas", "producers.holds", "producers.session", *ORACLE)
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
    """Return the dotted name of the module in `path`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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


def import_direction(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Packages import each other one way only, and by their full names."""
    allowed = IMPORTS_ALLOWED[name.partition(".")[0]]
    for line, module in imported(tree):
        package = module.partition(".")[0]
        if module.startswith("."):
            yield line, "relative import"
        elif package in {*PACKAGES, "tests"} and package not in allowed:
            yield line, f"{name} imports {module}"


def layers(name: str, tree: ast.Module, text: str) -> Iterator[tuple[int, str]]:
    """Inside the stream processor the pure layers import downwards only."""
    level = next((at for at, layer in enumerate(PURE_LAYERS) if is_inside(name, layer)), None)
    if level is None:
        return
    for line, module in imported(tree):
        if is_inside(module, "stream_processors") and module != "stream_processors":
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
    """Files and functions stay short enough to be read at once."""
    lines = text.count("\n")
    if lines > FILE_LINES_MAX:
        yield lines, f"{lines} lines in a file, {FILE_LINES_MAX} are allowed"
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
    if is_inside(name, "deploy"):
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
            yield node.lineno, f"{node.attr} crashes; see reading.py"


PACKAGE_RULES: tuple[Rule, ...] = (
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
TEST_RULES: tuple[Rule, ...] = (sizes, leftovers, swallowed, crashes)


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


def test_every_package_is_listed_for_the_wheel() -> None:
    folders = {each.parent.name for each in ROOT.glob("*/__init__.py")}
    assert folders - {"tests"} == set(PACKAGES) == set(IMPORTS_ALLOWED)


def test_pure_modules_are_there() -> None:
    for module in PURE:
        path = ROOT / Path(*module.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


@pytest.mark.parametrize(
    ("rule", "name", "code"),
    [
        (import_direction, "schemas.x", "def f():\n    from deploy.kafka import LocalKafka"),
        (import_direction, "producers.x", "import stream_processors.order"),
        (import_direction, "deploy.x", "from . import topics"),
        (layers, "stream_processors.order", "from stream_processors import table"),
        (layers, "stream_processors.table", "from stream_processors.app import x"),
        (purity, "schemas.x", "import os.path"),
        (purity, "stream_processors.table", "def f():\n    from time import time"),
        (sizes, "schemas.x", "x = 1\n" * 401),
        (sizes, "schemas.x", "def f():\n" + "    x = 1\n" * 60),
        (leftovers, "schemas.x", f"# {LEFTOVER_WORDS[0]}: more"),
        (docstrings, "schemas.x", '"""Module."""\nclass A:\n    """A."""\n    def f(self): ...'),
        (swallowed, "schemas.x", "try:\n    f()\nexcept Exception:\n    pass"),
        (swallowed, "schemas.x", "try:\n    f()\nexcept:\n    raise"),
        (prints, "producers.x", "print(1)"),
        (asserts_kept, "schemas.x", "assert (1, 'text')"),
        (crashes, "deploy.x", "admin.list_consumer_group_offsets([])"),
        (crashes, "deploy.x", "admin.describe_consumer_groups([])"),
    ],
)
def test_each_rule_finds_its_violation(rule: Rule, name: str, code: str) -> None:
    assert len(list(rule(name, ast.parse(code), code))) == 1

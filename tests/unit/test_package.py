"""What is shipped: the wheel, the sdist, an editable install, and a bare install's imports."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackagePath, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import durabill
from durabill.schemas.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "producers", "stream_processors", "deploy")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

EDITABLE = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
WALK = """
import importlib, pkgutil, durabill
for module in pkgutil.walk_packages(durabill.__path__, "durabill.", onerror=lambda _: None):
    try:
        importlib.import_module(module.name)
    except durabill.ExtraMissing as error:
        print(module.name, error.extra)
"""


def python(*arguments: str | Path, cwd: Path, path: str | None = None) -> str:
    """Run this Python; with a `path` it finds that and the standard library alone."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    isolated = ["-S", "-P"] if path is not None else []
    if path is not None:
        environ["PYTHONPATH"] = path
    command = [sys.executable, *isolated, *map(str, arguments)]
    ran = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert not ran.returncode, ran.stderr
    return ran.stdout


def build(source: Path, out: Path, *options: str) -> None:
    """Build with the venv's own hatchling: pip's isolated build would ask the index for it."""
    python("-m", "hatchling", "build", "-d", out, *options, cwd=source)


def install(wheel: Path, target: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    python("-m", "pip", "install", *options, "--target", target, wheel, cwd=target.parent)


def content(wheel: Path) -> dict[str, int]:
    """Each file of a wheel with its checksum; RECORD lists them all, in an order of its own."""
    with zipfile.ZipFile(wheel) as file:
        return {each.filename: each.CRC for each in file.infolist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist."""
    out = tmp_path_factory.mktemp("built")
    build(ROOT, out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, and nothing that it depends on."""
    target = tmp_path_factory.mktemp("installed") / "target"
    install(wheel, target)
    return target


@pytest.fixture(scope="module")
def bare(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path as a bare install has it: Durabill, and what it depends on without extras."""
    links = tmp_path_factory.mktemp("bare")
    for name in closure(map(Requirement, PROJECT["dependencies"])):
        for file in distribution(name).files or ():
            link(links, file)
    return os.pathsep.join([str(installed), str(links)])


def closure(wanted: Iterator[Requirement]) -> set[str]:
    """The names of the wanted distributions, and of all that they need."""
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        each = todo.pop()
        if each.name not in found and (each.marker is None or each.marker.evaluate({"extra": ""})):
            found.add(each.name)
            todo += map(Requirement, distribution(each.name).requires or ())
    return found


def link(links: Path, file: PackagePath) -> None:
    top = file.parts[0]
    if top not in ("..", "__pycache__") and not (links / top).exists():
        (links / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)


def test_a_wheel_holds_durabill_and_nothing_else(wheel: Path) -> None:
    names = set(content(wheel))
    meta = f"durabill-{durabill.__version__}.dist-info"
    assert {"durabill", meta} == {name.partition("/")[0] for name in names}
    sources = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*")]
    expected = {
        f"durabill/{path.relative_to(ROOT)}"
        for path in (*sources, *(ROOT / "src" / "durabill").glob("*.py"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected = {name.replace("durabill/src/durabill/", "durabill/") for name in expected}
    assert expected | {"durabill/py.typed"} == {n for n in names if not n.startswith(meta)}
    assert {".py", ".avsc", ".sql", ".lock", ".typed"} == {
        Path(name).suffix for name in names if not name.startswith(meta)
    }
    assert f"{meta}/licenses/LICENSE" in names


def test_whoever_finds_it_reads_what_it_is() -> None:
    assert PROJECT["authors"]
    assert PROJECT["license"] == "Apache-2.0"
    kinds = {each.partition(" :: ")[0] for each in PROJECT["classifiers"]}
    wanted = {"Development Status", "Intended Audience", "Operating System", "Topic", "Typing"}
    assert wanted | {"Programming Language"} <= kinds


def test_the_sdist_gives_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    tops = {"schemas", "producers", "stream_processors", "deploy", "src"}
    assert tops == {each.name for each in source.iterdir() if each.is_dir()}
    build(source, tmp_path / "out", "-t", "wheel")
    (again,) = (tmp_path / "out").glob("*.whl")
    assert content(wheel) == content(again)


def test_it_imports_from_where_it_is_installed(bare: str, installed: Path, tmp_path: Path) -> None:
    show = "import durabill.schemas.codec as m; print(m.__file__, len(m.SEGMENT_HEADER))"
    assert f"{installed}/durabill/schemas/codec.py 10" == (
        python("-c", show, cwd=tmp_path, path=bare).strip()
    )


def test_an_editable_install_leads_to_durabill_alone(tmp_path: Path) -> None:
    python("-c", EDITABLE, tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "target"
    install(wheel, target)
    (pth,) = target.glob("*.pth")
    assert str(ROOT / "src") == pth.read_text(encoding="utf-8").strip()
    found = f"""
import importlib.util, site
site.addsitedir({str(target)!r})
import durabill.schemas.errors
print(durabill.schemas.errors.__file__)
print([name for name in {PACKAGES} if importlib.util.find_spec(name)])
"""
    expected = [str(ROOT / "src" / "durabill" / "schemas" / "errors.py"), "[]"]
    assert python("-c", found, cwd=tmp_path, path="").split("\n")[:2] == expected


def test_a_bare_install_imports_a_module_or_names_the_extra(bare: str, tmp_path: Path) -> None:
    lines = python("-c", WALK, cwd=tmp_path, path=bare).splitlines()
    told = dict(line.split() for line in lines)
    assert told["durabill.producers.gateway"] == "gateway"
    assert told["durabill.stream_processors.worker"] == "engine"
    assert {"durabill.producers.sdk", "durabill.schemas"} & set(told) == set()


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("", "engine"),
        ("--help", "engine"),
        ("worker --settle-grace-s 1", "engine"),
        ("gateway", "gateway"),
        ("keys create", "gateway"),
        ("kafka start", "local"),
        ("demo", "all"),
    ],
)
def test_the_command_of_a_bare_install_names_the_extra(
    bare: str, installed: Path, tmp_path: Path, arguments: str, extra: str
) -> None:
    command = [sys.executable, "-S", str(installed / "bin" / "durabill"), *arguments.split()]
    environ = {**os.environ, "PYTHONPATH": bare}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: durabill")
    assert line.endswith(f"pip install 'durabill[{extra}]'")


def test_the_command_of_a_bare_install_tells_its_version(bare: str, tmp_path: Path) -> None:
    told = python("-m", "durabill", "--version", cwd=tmp_path, path=bare)
    assert told.strip() == f"durabill {durabill.__version__}"


def test_extras_bring_what_their_absence_is_told_of() -> None:
    modules: dict[str, set[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules.setdefault(name.lower(), set()).add(module)
    extras = PROJECT["optional-dependencies"]

    def brought(extra: str) -> set[str]:
        found: set[str] = set()
        for each in map(Requirement, extras[extra]):
            if each.name == "durabill":
                found |= {module for inner in each.extras for module in brought(inner)}
            else:
                found |= {m for m in modules[each.name.lower()] if not m.startswith("_")}
        return found

    assert dict(EXTRAS) == {extra: brought(extra) for extra in EXTRAS}
    assert set().union(*EXTRAS.values()) == brought("all")

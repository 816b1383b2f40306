"""Reference clients: built once into the project's folder, then played to."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durabill.deploy.local.jars import ensure_jars
from durabill.deploy.local.java import find_java, java_version
from durabill.deploy.local.stack import StackError
from tests.conftest import JARS_DIR, PROJECT_DIR
from tests.waiting import HANG_S

SOURCES = PROJECT_DIR / "clients"
CACHE = PROJECT_DIR / ".durabill" / "clients"
BUILD_TIMEOUT_S = 180
PLAY_TIMEOUT_S = 240


class CannotBuild(Exception):
    """A toolchain isn't on this machine, or what it needs can't be had; says which."""


@dataclass(frozen=True)
class Outcome:
    """What came of a client: its matrix, or why it could not be run."""

    matrix: Mapping[str, Any] | None
    said: str


def tool(name: str) -> str:
    """Return the path of a tool; raise CannotBuild where there is none."""
    path = shutil.which(name)
    if path is None:
        raise CannotBuild(f"{name} is not installed")
    return path


def run(command: Sequence[str], folder: Path, **more: str) -> None:
    """Run a tool in a folder, with more variables; raise CannotBuild where it fails."""
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotBuild(f"{' '.join(command[:2])} took over {BUILD_TIMEOUT_S} s") from error
    if ran.returncode:
        raise CannotBuild(f"{' '.join(command[:2])} failed: {(ran.stdout + ran.stderr)[-2000:]}")


def built(sources: Path, tool_version: str, make: Callable[[Path], None]) -> Path:
    """Return a folder with a copy of the sources in which `make` has been, for this tool."""
    files = sorted(each for each in sources.iterdir() if each.is_file())
    digest = hashlib.sha256(tool_version.encode())
    for path in files:
        digest.update(path.read_bytes())
    folder = CACHE / f"{sources.name}-{digest.hexdigest()[:16]}"
    if not folder.exists():
        draft = CACHE / f"{folder.name}.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for path in files:
            shutil.copy(path, draft)
        try:
            make(draft)
            draft.rename(folder)
        except OSError:
            if not folder.exists():  # else another run was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _version(command: Sequence[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    return ran.stdout


def java_client() -> list[str]:
    """Return the command of the client in Java, compiled against the broker's jars."""
    javac = tool("javac")
    try:
        java = find_java()
        jars = ensure_jars(JARS_DIR)
    except StackError as error:
        raise CannotBuild(str(error)) from error
    if (java_version(java) or 0) < (java_version(Path(javac)) or 0):
        raise CannotBuild(f"{java} is older than the javac on the path")
    path = os.pathsep.join(map(str, jars))

    def make(folder: Path) -> None:
        files = "Client.java", "Kafka.java"
        run([javac, "-Xlint:all,-path", "-Werror", "-cp", path, *files], folder)

    folder = built(SOURCES / "java", _version([javac, "-version"]), make)
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # it lives for seconds
    return [str(java), *options, "-cp", f"{folder}{os.pathsep}{path}", "Client"]


def go_client() -> list[str]:
    """Return the command of the client in Go."""
    go = tool("go")

    def make(folder: Path) -> None:
        run([go, "vet", "."], folder, GOFLAGS="-mod=readonly")
        run([go, "build", "-o", "client", "."], folder, GOFLAGS="-mod=readonly")

    return [str(built(SOURCES / "go", _version([go, "version"]), make) / "client")]


def typescript_client() -> list[str]:
    """Return the command of the client in TypeScript, compiled by its own compiler."""
    node, npm = tool("node"), tool("npm")

    def make(folder: Path) -> None:
        run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
        run([npm, "run", "--silent", "build"], folder)

    folder = built(SOURCES / "typescript", _version([node, "--version"]), make)
    return [node, str(folder / "build" / "client.js")]


BUILDERS: Mapping[str, Callable[[], list[str]]] = {
    "java": java_client,
    "go": go_client,
    "typescript": typescript_client,
}
"""How each reference client is built; gives the command, to which a mode is added."""


def sdk_client() -> list[str]:
    """Return the command of the Python SDK's client."""
    return [sys.executable, "-m", "tests.contract.sdk_client"]


def played(name: str) -> Outcome:
    """Build a client, and return what the conformance server says of it."""
    try:
        command = sdk_client() if name == "sdk" else [*BUILDERS[name](), "http"]
    except CannotBuild as error:
        return Outcome(None, str(error))
    seed = str(sorted([*BUILDERS, "sdk"]).index(name))
    play = [sys.executable, "-m", "durabill", "conformance", "serve", "--json", "--seed", seed]
    ran = subprocess.run(
        [*play, "--timeout-s", "200", "--", *command],
        capture_output=True,
        text=True,
        timeout=PLAY_TIMEOUT_S,
        check=False,
    )
    matrix = json.loads(ran.stdout)
    assert ran.returncode == (0 if matrix["conforms"] else 1)
    return Outcome(matrix, ran.stderr)


def all_played() -> dict[str, Outcome]:
    """Return what is said of all clients, which run side by side: they wait most of the time."""
    names = [*BUILDERS, "sdk"]
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(played, names), strict=True))


TITLES = {"sdk": "Python SDK", "java": "Java", "go": "Go", "typescript": "TypeScript"}


def feature_table(verdicts: Mapping[str, Mapping[str, str]]) -> str:
    """Return the features of all clients as docs/clients.md has them; verdicts by client."""
    from durabill.producers.conformance.features import FEATURES

    marks = {"pass": "yes", "fail": "no", "not seen": "-"}
    lines = [
        f"| feature | what a client does | {' | '.join(TITLES.values())} |",
        "|---|---|" + "---|" * len(TITLES),
    ]
    for each in FEATURES:
        cells = " | ".join(marks[verdicts[name][each.name]] for name in TITLES)
        says = each.says if each.is_required else f"{each.says} (advice)"
        lines.append(f"| `{each.name}` | {says} | {cells} |")
    return "\n".join(lines) + "\n"


def verdicts_of(outcome: Outcome) -> dict[str, str]:
    """Return the verdict of each feature."""
    assert outcome.matrix is not None, outcome.said
    return {each["name"]: each["verdict"] for each in outcome.matrix["features"]}


if __name__ == "__main__":  # the table for docs/clients.md
    print(feature_table({name: verdicts_of(each) for name, each in all_played().items()}))

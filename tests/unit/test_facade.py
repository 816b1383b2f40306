"""The names that users import: all there, lazily, seen by type checkers."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import durabill
from durabill import schemas
from durabill.schemas.extras import EXTRAS, ExtraMissing, require

SRC = Path(__file__).resolve().parents[2] / "src"
OF_EXTRAS = set().union(*EXTRAS.values())


def loaded(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded when it has run this."""
    show = f"{code}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", show]
    environ = {**os.environ, "PYTHONPATH": str(SRC)}
    return set(subprocess.check_output(command, env=environ, text=True).split())


@pytest.mark.parametrize("package", [durabill, schemas], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package: ModuleType) -> None:
    assert sorted(set(package.__all__)) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'Nonesuch'"):
        package.Nonesuch  # noqa: B018
    homes = {name for names in package._MODULES.values() for name in names}
    assert set(package.__all__) - {"__version__"} == homes


def test_errors_of_the_sdk_are_public() -> None:
    """Whatever a client's calls raise can be caught by a name of the façade."""

    assert isinstance(durabill.KafkaUplink, type)  # all modules of the SDK are loaded by now
    sdk = {
        each.__name__
        for each in _errors(durabill.ProducerError)
        if each.__module__.startswith("durabill.producers.sdk")
    }
    assert sdk <= set(durabill.__all__)


def _errors(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(_errors(each) for each in root.__subclasses__()))


def test_a_name_is_imported_when_it_is_used() -> None:
    modules = loaded("import durabill")
    assert not {each for each in modules if each.startswith("durabill.producers")}
    assert {"durabill.producers.sdk.session"} <= loaded("from durabill import ProducerError")


def test_a_client_by_http_loads_no_kafka_and_nothing_of_an_extra() -> None:
    modules = loaded("from durabill import Client, HttpUplink; HttpUplink('http://localhost:1')")
    assert not modules & {"confluent_kafka", "fastavro", "asyncio", *OF_EXTRAS}
    here = {each.split(".")[1] for each in modules if each.startswith("durabill.")}
    assert {"producers", "schemas"} == here


def test_a_client_by_kafka_loads_nothing_of_an_extra() -> None:
    modules = loaded("from durabill import Client, KafkaUplink")
    assert {"confluent_kafka", "fastavro"} <= modules
    assert modules & OF_EXTRAS <= {"cramjam"}  # fastavro takes it where it is, and needs none


def test_type_checkers_see_the_names_and_no_others(tmp_path: Path) -> None:
    names = sorted(set(durabill.__all__))
    program = tmp_path / "program.py"
    program.write_text(
        f"from durabill import {', '.join(names)}\n"
        "reveal_type(HttpUplink('http://localhost:1').start().report_interval_ms)\n"
        "from durabill import Nonesuch\n",
        encoding="utf-8",
    )
    options = ["--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache")]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, program.name],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ran.stderr
    revealed, unknown = ran.stdout.splitlines()
    assert 'Revealed type is "int"' in revealed
    assert 'Module "durabill" has no attribute "Nonesuch"' in unknown


def test_a_package_that_is_loaded_counts_as_there_whatever_its_spec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Faust, once imported, has none: whoever came after it was told that an extra is missing."""
    monkeypatch.setitem(sys.modules, "without_spec", ModuleType("without_spec"))
    require("somebody", "engine", "without_spec")
    with pytest.raises(ExtraMissing):
        require("somebody", "engine", "nowhere_to_be_found")

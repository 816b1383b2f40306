"""What a worker leaves in the data folder, for the commands beside it and for nobody else."""

import json
import os
from pathlib import Path

import pytest

from durabill.deploy.commands.ask_workers import known_workers, workers_dir
from durabill.deploy.commands.process_words import registered
from durabill.deploy.local.stack import birth_mark
from durabill.stream_processors.settings import Settings

URL = "http://127.0.0.1:21000"
SOMEBODY = 54_321

as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path / "data"))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_worker_is_found_while_it_runs(settings: Settings) -> None:
    folder = workers_dir(settings)
    with registered(settings, URL):
        assert known_workers(settings) == [URL]
        (file,) = folder.iterdir()
        assert [mode(each) for each in (folder.parent, folder, file)] == [0o700, 0o700, 0o600]
    assert list(folder.iterdir()) == []


def test_folders_that_were_open_are_closed(settings: Settings) -> None:
    folder = workers_dir(settings)
    folder.mkdir(parents=True)
    for each in (folder.parent, folder):
        each.chmod(0o711)
    with registered(settings, URL):
        assert [mode(each) for each in (folder.parent, folder)] == [0o700, 0o700]


def test_what_a_killed_worker_left_is_cleared_away(settings: Settings) -> None:
    folder = workers_dir(settings)
    with registered(settings, URL):
        killed = folder / "1.json"
        killed.write_text(json.dumps({"url": "http://a", "pid": 1, "birth_mark": "another"}))
        (folder / f"{os.getpid()}.new").touch()
        assert known_workers(settings) == [URL]
        assert not killed.exists()
    with registered(settings, "http://127.0.0.1:21001"):  # over a file of a pid like ours
        assert known_workers(settings) == ["http://127.0.0.1:21001"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        "7",
        "{}",
        '{"url": "http://a"}',
        '{"url": 1, "pid": [], "birth_mark": ""}',
        '{"url": "http://a", "pid": "one", "birth_mark": "x"}',
        "[" * 100_000,
        "\udcff",
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_a_file_of_another_shape_is_no_worker_and_stays(settings: Settings, content: str) -> None:
    with registered(settings, URL):
        other = workers_dir(settings) / "other.json"
        other.write_text(content, errors="surrogateescape")
        assert known_workers(settings) == [URL]
        assert other.exists()


def test_a_worker_goes_on_where_it_can_leave_no_word(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").write_text("no folder")
    with registered(settings, URL):
        assert known_workers(settings) == []
    told = capsys.readouterr().err
    assert told.startswith("note: ")
    assert "it is no folder" in told
    assert told.endswith("give DURABILL_WORKER_URLS instead\n")


@as_root_only
@pytest.mark.parametrize("depth", [0, 1, 2], ids=["data", "workers", "application id"])
def test_root_touches_nothing_in_another_users_folder(
    settings: Settings, depth: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither is a file there written or removed, nor is anybody asked whom it names."""
    folder = workers_dir(settings)
    folder.mkdir(parents=True)
    foreign = [folder.parent.parent, folder.parent, folder][depth]
    planted = folder / f"{os.getpid()}.json"
    killed = folder / "1.json"
    mark = birth_mark(os.getpid())
    planted.write_text(json.dumps({"url": "http://evil", "pid": os.getpid(), "birth_mark": mark}))
    killed.write_text(json.dumps({"url": "http://evil", "pid": 1, "birth_mark": "another"}))
    for each in (foreign, *(each for each in foreign.rglob("*"))):
        os.chown(each, SOMEBODY, SOMEBODY)
    before = {
        each: (each.lstat(), each.is_file() and each.read_text())
        for each in (foreign, folder, planted, killed)
    }
    with registered(settings, URL):
        assert known_workers(settings) == []
    after = {each: (each.lstat(), each.is_file() and each.read_text()) for each in before}
    assert [(each.st_mode, each.st_mtime_ns, text) for each, text in after.values()] == [
        (each.st_mode, each.st_mtime_ns, text) for each, text in before.values()
    ]
    assert sorted(each.name for each in folder.iterdir()) == sorted([planted.name, "1.json"])
    assert f"{foreign} belongs to another user" in capsys.readouterr().err

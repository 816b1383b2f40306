"""A stranger's text on a terminal and in a line of JSON: all of it seen, and exact."""

import io
import json

import pytest

from durabill.deploy.terminal import counted, emit, plain, plain_lines, progress_bars, say, shown
from durabill.schemas.text import ranges


@pytest.mark.parametrize("text", ["SO-1", "日本-7", "a b", "ü/%?#&", "Ünï'é"])
def test_what_can_be_seen_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", '""'),
        ("abc ", '"abc "'),
        (" abc", '" abc"'),
        ('say "so"', r'"say \"so\""'),
        ("a\\b", r'"a\\b"'),
        ("a\u202eb", r'"a\u202eb"'),
        ("a\u2066b", r'"a\u2066b"'),
        ("a\u2028b", r'"a\u2028b"'),
        ("a\u200bb", r'"a\u200bb"'),
        ("a\xa0b", r'"a\u00a0b"'),
        ("a\x1b[31m", r'"a\u001b[31m"'),
        ("a\n", r'"a\n"'),
        ("a\U000e0041", r'"a\udb40\udc41"'),
    ],
)
def test_what_cannot_be_seen_is_quoted_and_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert json.loads(shown(text).encode()) == text


def test_two_numbers_are_never_shown_alike() -> None:
    texts = ["abc", "abc ", '"abc "', "a\u200bbc", "a\\u200bbc"]
    assert len({shown(each) for each in texts}) == len(texts)


def test_json_lines_are_exact_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"service_order_number": "a\u2028b\u202e \x85é\U000e0041"}
    emit(value)
    out = capsys.readouterr().out
    assert out.splitlines() == [out.rstrip("\n")]
    assert "\u202e" not in out
    assert "é" in out
    assert json.loads(out) == value


def test_sentences_keep_their_quotes_and_lose_what_hides() -> None:
    assert plain('the key is "a b"') == 'the key is "a b"'
    assert plain("key \u202eabc\u2028\x1b[2J") == r"key \u202eabc\u2028\u001b[2J"
    assert plain_lines("one\ntwo\u2028\r") == "one\ntwo\\u2028\\r"


def test_one_is_no_plural() -> None:
    assert (counted(0, "order"), counted(1, "order")) == ("0 orders", "1 order")
    assert counted(2000, "dead letter") == "2,000 dead letters"
    assert counted(2, "copy", "copies") == "2 copies"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], "none"), ([3], "3"), ([2, 1, 0], "0-2"), ([0, 1, 3, 7, 8], "0-1, 3, 7-8")],
)
def test_ranges_as_people_write_them(numbers: list[int], expected: str) -> None:
    assert ranges(numbers) == expected


def test_json_is_exact_where_the_terminal_has_other_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding="iso-8859-1", errors="backslashreplace") as narrow:
        monkeypatch.setattr("sys.stdout", narrow)
        emit(["日本", "é"])
        assert json.loads(written.getvalue()) == ["日本", "é"]


def test_words_go_nowhere_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    say("not among the results")
    assert capsys.readouterr().out == ""


def test_a_bar_ends_where_the_next_phase_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bars() as progress:
        progress("plan", 0, 100)
        progress("read back", 51, 50)
        progress("truth", 0, 1)
        progress("truth", 1, 1)
    last = stream.getvalue().rpartition("plan")[2]
    assert "100/100" in last
    assert "50/50" in last
    assert "1/1" in last

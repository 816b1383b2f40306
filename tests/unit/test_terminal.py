"""A stranger's text on a terminal and in a line of JSON: all of it seen, and exact."""

import json

import pytest

from durabill.deploy.terminal import emit, shown


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

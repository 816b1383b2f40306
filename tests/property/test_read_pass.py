"""The compiled reading of segments against msgspec's: what it takes means the same to both."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from durabill.producers.gateway.api import SEGMENTS_MAX
from durabill.producers.gateway.read_pass import read_rows
from durabill.producers.gateway.rows import PackedRows, Row, pack
from durabill.producers.gateway.upload_shapes import Compact, UploadSegment, read_uploads
from durabill.schemas.limits import LONG_MAX, LONG_MIN

NAMES = ("business_data_number", "start_ms", "end_ms", "end_identifier")
_LIST = msgspec.json.Decoder(list[UploadSegment | Compact])

digits = st.sampled_from((0, 1, 9, 10, 10**17, 10**18 - 1)) | st.integers(0, 10**18 - 1)
space = st.text(" \t\r\n", max_size=2)
good_rows = st.tuples(digits, digits, digits, st.booleans())


@st.composite
def written(draw: st.DrawFn, row: Row) -> str:
    """A segment's JSON in one of the forms that clients write."""
    values = [json.dumps(each) for each in row]
    if draw(st.booleans()):
        names = draw(st.permutations(range(4)))
        parts = [
            f'{draw(space)}"{NAMES[at]}"{draw(space)}:{draw(space)}{values[at]}' for at in names
        ]
        return "{" + f"{draw(space)},".join(parts) + draw(space) + "}"
    return "[" + ",".join(draw(space) + each + draw(space) for each in values) + "]"


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[Row], str]:
    rows = draw(st.lists(good_rows, max_size=5))
    texts = [draw(space) + draw(written(each)) + draw(space) for each in rows]
    return rows, "[" + (",".join(texts) or draw(space)) + "]"


def read(*texts: str | bytes, rows_max: int = 50) -> list[list[Row]] | None:
    found = read_rows([msgspec.Raw(each) for each in texts], rows_max)
    return None if found is None else [list(each) for each in found]


def by_msgspec(text: bytes) -> list[Row] | None:
    """The rows as the typed decoder has them, None where it refuses them."""
    try:
        found: Sequence[Any] = _LIST.decode(text)
    except ValueError:
        return None
    return [each if isinstance(each, tuple) else msgspec.structs.astuple(each) for each in found]


@given(st.lists(lists(), min_size=1, max_size=4))
def test_what_clients_write_is_read(made: list[tuple[list[Row], str]]) -> None:
    assert read(*[text for _, text in made]) == [rows for rows, _ in made]


SEGMENT = '{"business_data_number":1,"start_ms":2,"end_ms":3,"end_identifier":false}'
ODD = [
    '{"business_data_number":1,"start_ms":2,"end_ms":3,"end_identifier":false,"start_ms":2}',
    '{"business_data_number":1,"start_ms":2,"start_ms":3,"end_identifier":false}',
    '{"business_data_number":1,"start_ms":2,"end_ms":3}',
    '{"business_data_number":1,"start_ms":2,"end_mm":3,"end_identifier":false}',
    '{"business_data\\u005fnumber":1,"start_ms":2,"end_ms":3,"end_identifier":false}',
    '{"business_data_number":1,"start_ms":2,"end_ms":3,"end_identifier":0}',
    *(
        "[1,2,3]",
        "[1,2,3,true,4]",
        "[1,2,3,true,]",
        "[1,2,3,tru]",
        "[1,2,3,falsy]",
        "[]",
        "{}",
        "7",
    ),
    *("[01,2,3,true]", "[-1,2,3,true]", "[1.0,2,3,true]", "[1e3,2,3,true]", "[1,2,,true]"),
    *("[1 2,3,true]", "[,1,2,3]", "[1000000000000000000,2,3,true]", "[1,2,3,true", "[1,2,3,t"),
    *('["1",2,3,true]', "[null,2,3,true]", "{[1,2,3,true]}", "[[1,2,3,true]]", "(1,2,3,true)"),
]


@pytest.mark.parametrize("text", [f"[{each}]" for each in ODD])
def test_what_is_written_in_another_way_is_left_to_msgspec(text: str) -> None:
    assert read(text) is None
    assert read(f"[{SEGMENT}]", text) is None
    assert read(text, f"[{SEGMENT}]") is None


@pytest.mark.parametrize("text", ["", " ", "[", "]", "[,]", f"[{SEGMENT},]", f"[{SEGMENT}", "null"])
def test_what_is_no_list(text: str) -> None:
    assert read(text) is None


@given(lists(), st.data())
@example(([], "[]"), None)
def test_whatever_is_taken_means_the_same_to_both(
    made: tuple[list[Row], str], data: st.DataObject | None
) -> None:
    """Bytes of a text are changed, taken out and put in."""
    text = bytearray(made[1].encode())
    if data is not None:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(text) - 1)) if text else 0
            new = data.draw(st.sampled_from(b'0123456789[]{},:" \t\n\0.e-+tfrues_\\\xff'))
            kind = data.draw(st.sampled_from("cdi"))
            text[at : at + (kind != "i")] = b"" if kind == "d" else bytes([new])
    found = read(bytes(text))
    if found is not None:
        assert found == [by_msgspec(bytes(text))]


@given(st.text('[]{},:" 12tfrue', max_size=12))
def test_whatever_text_it_is(text: str) -> None:
    found = read(text)
    if found is not None:
        assert found == [by_msgspec(text.encode())]


def test_there_is_room_for_so_many_and_no_more() -> None:
    text = f"[{','.join([SEGMENT] * 5)}]"
    assert read(text, rows_max=4) is None
    assert read(text, text, rows_max=10) == [[(1, 2, 3, False)] * 5] * 2
    assert read(text, text, rows_max=9) is None
    assert read("[]", "[]", rows_max=1) == [[], []]


def test_a_request_has_the_same_rows_in_either_form() -> None:
    upload = f'{{"service_order_number":"A","segments":[{SEGMENT},[4,5,6,true]]}}'
    packed = read_uploads(f'{{"uploads":[{upload}]}}'.encode())
    typed = read_uploads(f'{{"uploads":[{upload.replace(":1,", ":1.0,")}]}}'.encode())
    assert isinstance(packed.uploads[0].rows, PackedRows)
    assert not isinstance(typed.uploads[0].rows, PackedRows)
    assert (
        list(packed.uploads[0].rows) == typed.uploads[0].rows == [(1, 2, 3, False), (4, 5, 6, True)]
    )
    many = f'{{"uploads":[{",".join([upload] * (SEGMENTS_MAX // 2 + 1))}]}}'
    with pytest.raises(Exception, match="segments in"):
        read_uploads(many.encode())


longs = st.sampled_from((LONG_MIN, -1, 0, LONG_MAX)) | st.integers(LONG_MIN, LONG_MAX)


@given(st.lists(st.tuples(longs, longs, longs, st.booleans()), max_size=5))
def test_packed_rows_are_rows(rows: list[Row]) -> None:
    packed = PackedRows(pack(rows))
    assert (len(packed), list(packed)) == (len(rows), rows)
    assert [packed[at] for at in range(-len(rows), len(rows))] == rows + rows
    assert packed[1:3] == rows[1:3]
    for at in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            packed[at]

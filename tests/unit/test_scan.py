"""Registry ids in chunks: the kernel's against those that reading record by record finds."""

from hypothesis import given
from hypothesis import strategies as st

from durabill.schemas import SegmentEvent, encode_segment
from durabill.stream_processors.engine.batch import Chunk, records
from durabill.stream_processors.engine.kernel import scan
from durabill.stream_processors.engine.scan import IdScanner
from tests.property.batches import CODECS, Entry, encode_batch

OURS = encode_segment(SegmentEvent("SO1", 1, 1, 2, False))
VALUES = st.one_of(
    st.none(),
    st.binary(max_size=8),
    st.sampled_from(
        [OURS, b"\0\0\0\0", b"\0\0\0\0\x07", b"\0\xff\xff\xff\xff", b"\0\0\0\0\x07body"]
    ),
    st.integers(0, 3).map(lambda schema_id: b"\0" + schema_id.to_bytes(4, "big") + b"x"),
)
scanner = IdScanner()
scanner.warm_up()


def ids_of(chunk: Chunk) -> dict[int, int]:
    return {
        int.from_bytes(each.value[1:5], "big"): each.offset
        for each in records(chunk)
        if each.value is not None and len(each.value) >= 5 and each.value[0] == 0
    }


@given(
    st.lists(st.lists(VALUES, min_size=1, max_size=12), min_size=1, max_size=4),
    st.sampled_from(list(CODECS)),
    st.integers(0, 10),
)
def test_ids_in_a_chunk(batches: list[list[bytes | None]], codec: str, skipped: int) -> None:
    data, offset = b"", 5
    for values in batches:
        entries: list[tuple[int, Entry]] = [
            (offset + at, (b"k", value, ())) for at, value in enumerate(values)
        ]
        data += encode_batch(offset, 1, entries, codec=codec)
        offset += len(values)
    chunk = Chunk(5 + skipped, max(offset, 5 + skipped), data)
    assert ids_of(chunk) == scanner.ids_in(chunk)


def test_a_batch_that_can_not_be_unpacked() -> None:
    good = encode_batch(9, 1, [(9, (b"k", b"\0\0\0\0\x07", ()))])
    bad = bytearray(encode_batch(8, 1, [(8, (b"k", b"\0\0\0\0\x08", ()))], codec="zstd"))
    bad[61:70] = b"\xff" * 9
    assert scanner.ids_in(Chunk(8, 10, bytes(bad) + good)) == {7: 9}


def test_nothing_is_compiled_while_the_stream_flows() -> None:
    before = len(scan.registry_ids.signatures)
    assert before == 1
    for codec in CODECS:
        data = encode_batch(8, 1, [(8, (b"k", b"\0\0\0\0\x08", ()))], codec=codec)
        assert scanner.ids_in(Chunk(8, 9, data)) == {8: 8}
    assert before == len(scan.registry_ids.signatures)

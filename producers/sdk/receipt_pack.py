"""Receipts in little room: several of them in one block of bytes, and back, character by character.

A receipt is base64url of JSON and of a signature, so it takes a third more than what it says, and
one resembles the next. In a block what is base64url stands as the bytes that it means, and the
whole is compressed: of some 600 characters of a receipt of one order 200 bytes are left, most of
them signature, hashes and salt. Whatever is no receipt's form stands as it came. Pure.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Iterator, Sequence

from durabill.schemas.base64url import encode64

BLOCK_BYTES_MIN = 4_096
"""A block of several receipts has at least so many: so it is told from one that has one."""
BLOCK_CHARS_MAX = 1024 * 1024
_CHARS_MAX = 4 * 1024 * 1024  # of a block that is read: a damaged one may say anything
_LARGE_CHARS = 16 * 1024  # of one that says something: it takes more than BLOCK_BYTES_MIN
_FORM = b"\x01"
_TYPICAL = (  # the more typical, the nearer to the end
    b'{"alg":"Ed25519","kid":"","typ":"receipt+jwt"}{"iat_ms":17,"root":"=="}'
    b'{"ten":"default","cli":"","topic":"segments","uploads":[{"ord":"01","par":0,"off":[0,0],'
    b'"num":[[1,1]],"sha256":"","cnt":1},{"ord":"01","par":1,"off":[1,1],"num":[[1,1]],"sha256":"'
    b'","cnt":1}],"salt":""}'
)


def packed(receipts: Sequence[str]) -> bytes | str:
    """Return receipts as they are kept: one that gets no shorter stays the text that it is.

    One receipt of a usual size may come to less than BLOCK_BYTES_MIN, several never do.
    """
    press = zlib.compressobj(wbits=-zlib.MAX_WBITS, zdict=_TYPICAL)
    plain = b"".join(map(_plain, receipts))
    sum_bytes = zlib.crc32(plain).to_bytes(4, "big")
    block = _FORM + sum_bytes + press.compress(plain) + press.flush()
    if len(receipts) > 1:
        return block.ljust(BLOCK_BYTES_MIN, b"\0")
    (receipt,) = receipts
    is_odd = len(receipt) > _LARGE_CHARS and len(block) < BLOCK_BYTES_MIN
    return receipt if is_odd or len(block) >= len(receipt.encode()) else block


def unpacked(content: bytes | str) -> list[str]:
    """Return the receipts of what `packed` gave; raise ValueError for what is damaged."""
    if isinstance(content, str):
        return [content]
    try:
        press = zlib.decompressobj(wbits=-zlib.MAX_WBITS, zdict=_TYPICAL)
        plain = press.decompress(content[5:], _CHARS_MAX)
    except zlib.error as error:
        raise ValueError("a block of receipts that can't be read") from error
    is_whole = content[:1] == _FORM and press.eof
    if not is_whole or zlib.crc32(plain).to_bytes(4, "big") != content[1:5]:
        raise ValueError("a block of receipts that isn't what was written")
    return list(_texts(plain))


def _plain(receipt: str) -> bytes:
    """Return a receipt's parts, each with its length and with what stands behind it."""
    parts = bytearray()
    pieces = re.split(r"([.~])", receipt)
    for text, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        data = _decoded(text)
        content = text.encode("utf-8", "surrogatepass") if data is None else data
        kind = "." if mark == "." else "~" if mark else "\n"
        parts += (kind if data is None else kind.translate(_AS_DATA)).encode()
        parts += b"%d:%b" % (len(content), content)
    return bytes(parts)


_AS_DATA = str.maketrans(".~\n", "d-e")
_AS_TEXT = {ord(data): text for text, data in zip(".~\n", "d-e", strict=True)}


def _texts(plain: bytes) -> Iterator[str]:
    at, text = 0, ""
    while at < len(plain):
        kind, colon = plain[at : at + 1].decode(), plain.index(b":", at)
        content = plain[colon + 1 : colon + 1 + int(plain[at + 1 : colon])]
        at = colon + 1 + len(content)
        mark = kind.translate(_AS_TEXT)
        text += content.decode("utf-8", "surrogatepass") if kind == mark else encode64(content)
        if mark != "\n":
            text += mark
            continue
        yield text
        text = ""


def _decoded(text: str) -> bytes | None:
    """Return what base64url without padding means; None for what can't be made of bytes again."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    return data if encode64(data) == text else None

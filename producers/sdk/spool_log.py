"""Whether a spool's log, left by a process that was killed, lost commits in its middle. Pure.

SQLite reads its write-ahead log up to the first frame whose checksum is wrong, and passes over the
rest in silence. That is right for a torn end: the commit that was being written was told to nobody.
Whether the very last one was torn or damaged nobody can say. Another one behind it was stored, and
is gone. (File format: https://www.sqlite.org/fileformat2.html#walformat.)
"""

import struct

_HEAD_BYTES, _FRAME_BYTES = 32, 24
_ORDERS = {0x377F0682: "<", 0x377F0683: ">"}
_WORD_MASK = 0xFFFF_FFFF


def lost_commits(content: bytes, page_bytes: int) -> bool:
    """Tell whether a log has a commit behind one that can't be read."""
    if len(content) < _HEAD_BYTES:
        return False
    magic, _, _, _, *salts = struct.unpack(">6I", content[:24])
    order = _ORDERS.get(magic, "<")
    sums = _summed(content[:24], (0, 0), order)
    has_head = magic in _ORDERS and sums == struct.unpack(">2I", content[24:_HEAD_BYTES])
    is_readable, unread, step = has_head, 0, _FRAME_BYTES + page_bytes
    for at in range(_HEAD_BYTES, len(content) - step + 1, step):
        frame = content[at : at + step]
        _, commit_pages, *found = struct.unpack(">6I", frame[:_FRAME_BYTES])
        if found[:2] != salts and has_head:  # of an earlier round: its commits are in the file
            is_readable = False
            continue
        if is_readable:
            sums = _summed(frame[:8] + frame[_FRAME_BYTES:], sums, order)
            is_readable = [*sums] == found[2:]
        unread += not is_readable and commit_pages > 0
    return unread > 1


def _summed(content: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """Return the checksums after some more of the log, which they depend on all of."""
    one, two = sums
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & _WORD_MASK
        two = (two + second + one) & _WORD_MASK
    return one, two

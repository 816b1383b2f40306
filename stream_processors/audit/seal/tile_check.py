"""Compares the files of a log with what its records give; part of `check`."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from durabill.stream_processors.audit.seal.entries import large_path
from durabill.stream_processors.audit.seal.folder import LogFolder
from durabill.stream_processors.audit.seal.merkle import HASH_BYTES
from durabill.stream_processors.audit.seal.tiles import (
    WIDTH,
    Frontier,
    Tile,
    TileError,
    bundle_of,
    entries_of,
    parse_tile,
)

Find = Callable[[str, str, str, str, bytes], None]
"""Called as find(field, expected, found, place, entry) for each inconsistency."""

BUNDLE = -1


class TileCheck:
    """The files of one log, compared while its tree grows.

    `listed` are the files that were there at the start; `size` is that of the log's checkpoint,
    whose files must be there.
    """

    def __init__(self, find: Find, files: LogFolder, listed: Sequence[str], size: int) -> None:
        self.frontier = Frontier()
        self._find, self._files, self._size = find, files, size
        self._entries: list[bytes] = []
        self._listed: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        self._others: list[str] = []
        for path in listed:
            tile = parse_tile(path)
            if tile is None:
                self._others.append(path)
            else:
                self._listed[tile.level, tile.number].add(tile.width)

    def grown(self, entry: bytes, value: bytes | None) -> None:
        """Take an entry that the frontier has got; compare the tiles that it has filled."""
        self._entries.append(entry)
        path = large_path(entry)
        if path is not None and value is not None and self.frontier.size <= self._size:
            self._compare_large(path, value)
        size = self.frontier.size
        if size % WIDTH:
            return
        self._compare(BUNDLE, size // WIDTH - 1, WIDTH)
        self._entries = []
        level, span = 0, WIDTH
        while size % span == 0:
            self._compare(level, size // span - 1, WIDTH)
            level, span = level + 1, span * WIDTH
        self.frontier.forget()

    def ended(self) -> None:
        """Compare the tiles that aren't full at the end."""
        size = self.frontier.size
        if self._entries:
            self._compare(BUNDLE, size // WIDTH, len(self._entries))
        for level, row in enumerate(self.frontier.levels):
            if row:
                self._compare(level, size // WIDTH ** (level + 1), len(row))

    def strangers(self, width: int) -> None:
        """Tell of files that a log of this size can't have."""
        for path in self._others:
            self._find("file", "a tile or a bundle", "another file", self._place(path), b"")
        for (level, number), widths in sorted(self._listed.items()):
            most = width // WIDTH ** max(level, 0) - number * WIDTH
            for each in sorted(widths):
                if each > most:
                    what = f"at most {max(most, 0)}, by the signed checkpoint of size {width}"
                    path = Tile(level, number, each).path
                    self._find("width", what, str(each), self._place(path), b"")

    def _compare(self, level: int, number: int, width: int) -> None:
        """Compare the files of a tile that has this width by now."""
        expected = self._expected(level, width, number)
        of_checkpoint = self._size // WIDTH ** max(level, 0) - number * WIDTH
        needed = min(WIDTH, of_checkpoint)
        widths = self._listed[level, number]
        for each in sorted({*widths, needed}):
            if not 0 < each <= width:
                continue
            tile = Tile(level, number, each)
            data = self._files.read(tile.path)
            if data is None:
                full = self._files.read(Tile(level, number, WIDTH).path)
                if each == needed and full is None:
                    self._find("file", "a file of the log", "none", self._place(tile.path), b"")
                continue
            if data != expected(each):
                self._tell(tile, data, expected(each))

    def _expected(self, level: int, width: int, number: int) -> Callable[[int], bytes]:
        if level == BUNDLE:
            entries = self._entries
            return lambda each: bundle_of(entries[:each])
        whole = self.frontier.content(Tile(level, number, width))
        return lambda each: whole[: each * HASH_BYTES]

    def _compare_large(self, path: str, value: bytes) -> None:
        data = self._files.read(path)
        if data != value:
            found = "none" if data is None else f"{len(data)} other bytes"
            self._find("large value", f"{len(value)} bytes", found, self._place(path), value)

    def _tell(self, tile: Tile, data: bytes, expected: bytes) -> None:
        place = self._place(tile.path)
        if tile.level != BUNDLE:
            places = range(0, max(len(expected), len(data)), HASH_BYTES)
            pairs = [(data[at:][:HASH_BYTES], expected[at:][:HASH_BYTES]) for at in places]
            at, (was, right) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
            what = f"hash {at} is {right.hex() or 'not there'}"
            self._find("tile", what, was.hex() or "nothing", place, b"")
            return
        entries = entries_of(expected)
        try:
            found = entries_of(data)
        except TileError as error:
            self._find("bundle", f"{len(entries)} entries", str(error), place, b"")
            return
        for at, each in enumerate(entries):
            if at >= len(found) or found[at] != each:
                index = tile.number * WIDTH + at
                what = "nothing" if at >= len(found) else found[at].hex()
                self._find("bundle", f"entry {index} is {each.hex()}", what, place, each)
                return
        self._find("bundle", f"{len(entries)} entries", f"{len(found)}", place, b"")

    def _place(self, path: str) -> str:
        return f"{self._files.folder}/{path}"

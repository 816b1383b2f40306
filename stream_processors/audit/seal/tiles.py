"""The layout of C2SP's tlog-tiles: which files a log of a size has, and what is in them. Pure.

A tile holds up to 256 hashes of one level. Tile level l has the hashes of the tree's level 8 * l:
256 hashes of one tile make one of the level above. A bundle holds the entries whose hashes are in
the tile of level 0 of the same number, each behind its length in two bytes. What is not full yet
is partial; its name tells its width. See docs/audit.md for an example.
"""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from durabill.schemas.merkle import leaf_hash, node_hash
from durabill.stream_processors.audit.seal.merkle import EMPTY_ROOT, HASH_BYTES, perfect_hash

WIDTH = 256
_TILE_LEVELS = 8  # of the tree, between one tile level and the next
ENTRY_BYTES_MAX = 65_535
LEVELS_MAX = 8
"""Tile levels that a log can have: 256 ** 8 leaves are more than there are offsets."""

ENTRIES = "entries"
_PATH = re.compile(r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x\d{3}/)*\d{3})(?:\.p/([1-9]\d*))?")


class TileError(Exception):
    """A file of the log is missing, or isn't what its name says."""


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A file of the log: `level` -1 is a bundle of entries, and `width` says how much it holds."""

    level: int
    number: int
    width: int

    @property
    def path(self) -> str:
        """Return its name below the log's folder, as tlog-tiles has it."""
        rest, last = divmod(self.number, 1000)
        name = f"{last:03}"
        while rest:
            rest, part = divmod(rest, 1000)
            name = f"x{part:03}/{name}"
        level = ENTRIES if self.level < 0 else str(self.level)
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{name}{partial}"


def parse_tile(path: str) -> Tile | None:
    """Return the tile that a path names, None where it names none."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    level, name, width = found.groups()
    number = int(name.replace("/", "").replace("x", ""))
    tile = Tile(-1 if level == ENTRIES else int(level), number, int(width or WIDTH))
    return tile if tile.width <= WIDTH and tile.path == path else None


def tiles_between(old_size: int, new_size: int) -> Iterator[Tile]:
    """Yield what a log of `new_size` has and one of `old_size` hadn't: bundles, tiles upwards."""
    for level in (-1, *range(LEVELS_MAX)):
        span = WIDTH ** max(level, 0)
        old, new = old_size // span, new_size // span
        if new == 0:
            return
        if new > old:
            first, last = old // WIDTH, (new - 1) // WIDTH
            for number in range(first, last + 1):
                yield Tile(level, number, min(WIDTH, new - number * WIDTH))


def bundle_of(entries: Sequence[bytes]) -> bytes:
    """Return the bundle of some entries."""
    return b"".join([part for each in entries for part in (struct.pack(">H", len(each)), each)])


def entries_of(bundle: bytes) -> list[bytes]:
    """Return a bundle's entries. Raises TileError where it is cut off."""
    entries, at = [], 0
    while at < len(bundle):
        start = at + 2
        at = start + int.from_bytes(bundle[at:start], "big")
        if start > len(bundle) or at > len(bundle):
            raise TileError("the bundle is cut off")
        entries.append(bundle[start:at])
    return entries


class Frontier:
    """What is needed of a tree to let it grow: of each tile level the hashes that are not full.

    It keeps the full tiles that come about until `take` takes them.
    """

    def __init__(self, size: int = 0, levels: Sequence[Sequence[bytes]] = ()) -> None:
        self.size = size
        self.levels = [list(each) for each in levels]
        self._full: dict[tuple[int, int], list[bytes]] = {}

    def append(self, entry: bytes) -> None:
        """Add a leaf."""
        self.size += 1
        self._push(0, leaf_hash(entry))

    def _push(self, level: int, each: bytes) -> None:
        if level == len(self.levels):
            self.levels.append([])
        row = self.levels[level]
        row.append(each)
        if len(row) == WIDTH:
            number = self.size // WIDTH ** (level + 1) - 1
            self._full[level, number] = row
            self.levels[level] = []
            self._push(level + 1, perfect_hash(row))

    def root(self) -> bytes:
        """Return the root: the peaks of all levels, united from the right."""
        root: bytes | None = None
        for row in self.levels:
            end = len(row)
            while end:
                width = end & -end
                peak = perfect_hash(row[end - width : end])
                root = peak if root is None else node_hash(peak, root)
                end -= width
        return EMPTY_ROOT if root is None else root

    def content(self, tile: Tile) -> bytes:
        """Return the bytes of a tile of hashes that was made since the last `forget`."""
        row = self._full.get((tile.level, tile.number))
        hashes = self.levels[tile.level] if row is None else row
        assert len(hashes) >= tile.width, "a tile of this tree"
        return b"".join(hashes[: tile.width])

    def forget(self) -> None:
        """Let the full tiles go: they are written."""
        self._full.clear()


def partial_widths(size: int) -> list[int]:
    """Return the width of each level's partial tile in a tree of `size`, from level 0 on."""
    widths = []
    while size:
        size, width = divmod(size, WIDTH)
        widths.append(width)
    return widths


class TileReader:
    """Gives the nodes of a tree of `size` out of its tiles: a `NodeReader`.

    `read` returns the bytes of a path below the log's folder, None where there is no such file.
    """

    def __init__(self, read: Callable[[str], bytes | None], size: int) -> None:
        self._read, self.size = read, size
        self._tiles: dict[tuple[int, int], list[bytes]] = {}

    def __call__(self, level: int, index: int) -> bytes:
        """Return the hash of a perfect subtree. Raises TileError where the log lacks the tile."""
        tile_level, height = divmod(level, _TILE_LEVELS)
        number, at = divmod(index << height, WIDTH)
        hashes = self.hashes(tile_level, number)[at : at + (1 << height)]
        if len(hashes) < 1 << height:
            raise TileError(f"tile/{tile_level}: tile {number} is too narrow")
        return perfect_hash(hashes)

    def hashes(self, level: int, number: int) -> list[bytes]:
        """Return a tile's hashes, as wide as it is in the tree of this size."""
        known = self._tiles.get((level, number))
        if known is None:
            width = min(WIDTH, self.size // WIDTH**level - number * WIDTH)
            data = self._bytes(Tile(level, number, width))
            if len(data) < width * HASH_BYTES or len(data) % HASH_BYTES:
                raise TileError(f"{Tile(level, number, width).path} has {len(data)} bytes")
            known = [data[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]
            self._tiles[level, number] = known
        return known

    def bundle(self, number: int) -> bytes:
        """Return a bundle as it is."""
        return self._bytes(Tile(-1, number, min(WIDTH, self.size - number * WIDTH)))

    def entries(self, number: int) -> list[bytes]:
        """Return the entries of a bundle, as many as the tree of this size has of it."""
        width = min(WIDTH, self.size - number * WIDTH)
        tile = Tile(-1, number, width)
        entries = entries_of(self.bundle(number))
        if len(entries) < width:
            raise TileError(f"{tile.path} has {len(entries)} entries")
        return entries[:width]

    def frontier(self) -> Frontier:
        """Return the tree's right edge. Raises TileError where tiles are missing."""
        levels = [
            self.hashes(level, self.size // WIDTH ** (level + 1)) if width else []
            for level, width in enumerate(partial_widths(self.size))
        ]
        return Frontier(self.size, levels)

    def _bytes(self, tile: Tile) -> bytes:
        """Return a file's content; a full one does in place of a partial one."""
        if tile.width <= 0:
            raise TileError(f"a log of {self.size} has no {tile.path}")
        paths = {tile.path, Tile(tile.level, tile.number, WIDTH).path}
        for path in sorted(paths, key=len, reverse=True):
            data = self._read(path)
            if data is not None:
                return data
        raise TileError(f"{tile.path} is missing")

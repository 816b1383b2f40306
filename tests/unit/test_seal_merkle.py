"""The Merkle tree against vectors that Go made, and against pymerkle."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pymerkle import InclusionProof, InmemoryTree, verify_consistency, verify_inclusion

from durabill.schemas.merkle import leaf_hash
from durabill.stream_processors.audit.seal import merkle
from durabill.stream_processors.audit.seal.merkle import EMPTY_ROOT, ProofError
from durabill.stream_processors.audit.seal.tiles import (
    Frontier,
    Tile,
    TileError,
    TileReader,
    bundle_of,
    entries_of,
    parse_tile,
    partial_widths,
    tiles_between,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "seal_oracle" / "vectors.json").read_text(encoding="utf-8")
)
LEAVES = [bytes.fromhex(each) for each in VECTORS["leaves"]]
ROOTS = [
    "e3b0c442",
    "6e340b9c",
    "fac54203",
    "aeb6bcfe",
    "d37ee418",
    "4e3bbb1f",
    "76e67dad",
    "ddb89be4",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""RFC 6962's hashes of the leaves that transparency-dev publishes, by the tree's size."""


def raw(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(each) for each in texts]


def tree_of(entries: list[bytes]) -> tuple[Frontier, TileReader]:
    """A tree, and a reader of its tiles as they would be in files."""
    frontier = Frontier()
    for each in entries:
        frontier.append(each)
    size = len(entries)
    tiles = {
        each.path: bundle_of(entries[each.number * 256 :][: each.width])
        if each.level < 0
        else frontier.content(each)
        for each in tiles_between(0, size)
    }
    return frontier, TileReader(tiles.get, size)


def entries_numbered(count: int) -> list[bytes]:
    return [b"entry %d" % each for each in range(count)]


def test_roots_are_the_published_ones() -> None:
    assert [each[:8] for each in VECTORS["roots"]] == [each[:8] for each in ROOTS]
    frontier = Frontier()
    found = [frontier.root().hex()]
    for each in LEAVES:
        frontier.append(each)
        found.append(frontier.root().hex())
    assert found == VECTORS["roots"]
    assert found[8] == ROOTS[8]


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=lambda each: each["name"])
def test_inclusion_is_judged_as_go_does(vector: dict[str, Any]) -> None:
    leaf, root = raw([vector["leaf"], vector["root"]])
    given = leaf, vector["index"], vector["size"], raw(vector["proof"]), root
    if vector["good"]:
        merkle.verify_inclusion(*given)
    else:
        with pytest.raises(ProofError):
            merkle.verify_inclusion(*given)


@pytest.mark.parametrize("vector", VECTORS["consistency"], ids=lambda each: each["name"])
def test_consistency_is_judged_as_go_does(vector: dict[str, Any]) -> None:
    """But that an empty tree has to have the empty tree's root, which Go doesn't look at."""
    old_root, new_root = raw([vector["old_root"], vector["new_root"]])
    given = vector["old_size"], vector["new_size"], raw(vector["proof"]), old_root, new_root
    if vector["good"] and (vector["old_size"] or old_root == EMPTY_ROOT):
        merkle.verify_consistency(*given)
    else:
        with pytest.raises(ProofError):
            merkle.verify_consistency(*given)


def test_the_vectors_are_of_both_kinds() -> None:
    for kind in ("inclusion", "consistency"):
        verdicts = [each["good"] for each in VECTORS[kind]]
        assert len(verdicts) > 95
        assert sum(verdicts) >= 5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 600])
def test_proofs_satisfy_pymerkle(size: int) -> None:
    entries = entries_numbered(size)
    frontier, reader = tree_of(entries)
    theirs = InmemoryTree.init_from_entries(entries, algorithm="sha256")
    root = theirs.get_root(size)
    assert frontier.root() == root
    for index in {0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size)):
        proof = merkle.inclusion_proof(reader, index, size)
        merkle.verify_inclusion(leaf_hash(entries[index]), index, size, proof, root)
        expected = theirs.prove_inclusion(index + 1, size)
        assert proof == expected.path[1:]
        verify_inclusion(leaf_hash(entries[index]), root, expected)
        assert isinstance(expected, InclusionProof)
    for old in {1, 2, size // 2, size - 1, size} & set(range(1, size + 1)):
        proof = merkle.consistency_proof(reader, old, size)
        old_root = theirs.get_root(old)
        merkle.verify_consistency(old, size, proof, old_root, root)
        verify_consistency(old_root, root, theirs.prove_consistency(old, size))


@pytest.mark.parametrize("tiles", VECTORS["tiles"], ids=lambda each: str(each["size"]))
def test_tiles_are_those_that_go_names(tiles: dict[str, Any]) -> None:
    """Go names a wider tile of a level alone where a growing log would have had both."""
    found = [each for each in tiles_between(0, tiles["size"]) if each.level >= 0]
    assert {each.path for each in found} == set(tiles["paths"])
    bundles = [each.path for each in tiles_between(0, tiles["size"]) if each.level < 0]
    level_0 = [each.path for each in found if each.level == 0]
    assert [each.replace("entries", "0") for each in bundles] == level_0


def test_widths_of_the_specification() -> None:
    def counted(size: int) -> dict[tuple[int, int], int]:
        """(level, width) -> how many tiles"""
        counts: dict[tuple[int, int], int] = {}
        for each in tiles_between(0, size):
            if each.level >= 0:
                counts[each.level, each.width] = counts.get((each.level, each.width), 0) + 1
        return counts

    assert counted(70_000) == {
        (0, 256): 273,
        (0, 112): 1,
        (1, 256): 1,
        (1, 17): 1,
        (2, 1): 1,
    }
    assert counted(256) == {(0, 256): 1, (1, 1): 1}
    assert partial_widths(70_000) == [112, 17, 1]
    assert partial_widths(256) == [0, 1]


def test_paths_lead_to_tiles_and_back() -> None:
    assert Tile(0, 1_234_067, 256).path == "tile/0/x001/x234/067"
    assert Tile(-1, 5, 17).path == "tile/entries/005.p/17"
    for tile in (Tile(0, 0, 1), Tile(3, 999, 256), Tile(1, 1_000, 255), Tile(-1, 1_234_067, 8)):
        assert parse_tile(tile.path) == tile
    for path in ("tile/0/5", "tile/00/005", "tile/0/005.p/256", "tile/0/005.p/0", "tile/64/000"):
        assert parse_tile(path) is None


@pytest.mark.parametrize("cuts", [(1, 255, 256, 257, 600), (300, 512, 70), (0, 256 * 3)])
def test_a_log_that_grew_in_steps_has_the_same_root(cuts: tuple[int, ...]) -> None:
    cuts = tuple(sorted(cuts))
    entries = entries_numbered(cuts[-1])
    frontier = Frontier()
    files: dict[str, bytes] = {}
    for old, new in pairwise((0, *cuts)):
        for each in entries[old:new]:
            frontier.append(each)
        for tile in tiles_between(old, new):
            first = tile.number * 256
            content = bundle_of(entries[first:][: tile.width])
            files[tile.path] = content if tile.level < 0 else frontier.content(tile)
        frontier.forget()
        reader = TileReader(files.get, new)
        assert reader.frontier().root() == tree_of(entries[:new])[0].root()
        frontier = reader.frontier()


def test_a_bundle_that_is_cut_off_is_noticed() -> None:
    bundle = bundle_of([b"one", b"", b"three" * 99])
    assert entries_of(bundle) == [b"one", b"", b"three" * 99]
    for cut in (1, 2, 4, 6, len(bundle) - 1):
        with pytest.raises(TileError):
            entries_of(bundle[:cut])

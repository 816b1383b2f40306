// Checks sealed logs and receipts of Durabill by implementations that nobody of Durabill wrote:
// golang.org/x/mod/sumdb (tlog, note) and github.com/transparency-dev/merkle.
//
//	go run . vectors              prints the vectors of vectors.json
//	go run . log FOLDER KEY       checks a whole log: checkpoint, tiles, bundles, proofs
//	go run . receipt FILE KEY     checks a receipt
//
// KEY is the public key, NAME+HASH+BASE64.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "vectors":
		err = printVectors()
	case len(os.Args) == 4 && os.Args[1] == "log":
		err = checkLog(os.Args[2], os.Args[3])
	case len(os.Args) == 4 && os.Args[1] == "receipt":
		err = checkReceipt(os.Args[2], os.Args[3])
	default:
		err = fmt.Errorf("vectors | log FOLDER KEY | receipt FILE KEY")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// openCheckpoint verifies a signed checkpoint and returns its tree.
func openCheckpoint(signed []byte, key string) (tlog.Tree, error) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return tlog.Tree{}, err
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 {
		return tlog.Tree{}, fmt.Errorf("no checkpoint: %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	hash, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: hash}, err
}

// diskTiles reads tiles from a log's folder.
type diskTiles struct{ folder string }

func (d diskTiles) Height() int { return 8 }

func (d diskTiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (d diskTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, tile := range tiles {
		// Go's own paths have the height behind "tile"; C2SP's haven't.
		path := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		content, err := os.ReadFile(filepath.Join(d.folder, path))
		if err != nil {
			return nil, err
		}
		data = append(data, content)
	}
	return data, nil
}

// readEntries returns all entries of a log of a size.
func readEntries(folder string, size int64) ([][]byte, error) {
	var entries [][]byte
	for number := int64(0); number*256 < size; number++ {
		tile := tlog.Tile{H: 8, L: 0, N: number, W: int(min(256, size-number*256))}
		path := "tile/entries/" + strings.TrimPrefix(tile.Path(), "tile/8/0/")
		bundle, err := os.ReadFile(filepath.Join(folder, path))
		if err != nil {
			return nil, err
		}
		for len(bundle) >= 2 {
			length := int(binary.BigEndian.Uint16(bundle))
			if len(bundle) < 2+length {
				return nil, fmt.Errorf("%s is cut off", path)
			}
			entries = append(entries, bundle[2:2+length])
			bundle = bundle[2+length:]
		}
	}
	return entries, nil
}

func checkLog(folder, key string) error {
	signed, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	if err != nil {
		return err
	}
	tree, err := openCheckpoint(signed, key)
	if err != nil {
		return err
	}
	entries, err := readEntries(folder, tree.N)
	if err != nil {
		return err
	}
	if int64(len(entries)) != tree.N {
		return fmt.Errorf("%d entries, %d are sealed", len(entries), tree.N)
	}
	// A tree of our own, made of the entries alone.
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	for n, entry := range entries {
		hashes, err := tlog.StoredHashes(int64(n), entry, reader)
		if err != nil {
			return err
		}
		stored = append(stored, hashes...)
	}
	root, err := tlog.TreeHash(tree.N, reader)
	if err != nil || root != tree.Hash {
		return fmt.Errorf("the entries' root is %v, signed is %v (%v)", root, tree.Hash, err)
	}
	if tree.N == 0 {
		fmt.Println("verified: an empty log")
		return nil
	}
	// And the tiles: every one that a proof of any entry needs is checked against the root.
	tiles := tlog.TileHashReader(tree, diskTiles{folder})
	for n, entry := range entries {
		proof, err := tlog.ProveRecord(tree.N, int64(n), tiles)
		if err == nil {
			err = tlog.CheckRecord(proof, tree.N, tree.Hash, int64(n), tlog.RecordHash(entry))
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
	}
	for old := int64(1); old <= tree.N; old += 1 + tree.N/97 {
		before, err := tlog.TreeHash(old, reader)
		if err != nil {
			return err
		}
		proof, err := tlog.ProveTree(tree.N, old, tiles)
		if err == nil {
			err = tlog.CheckTree(proof, tree.N, tree.Hash, old, before)
		}
		if err != nil {
			return fmt.Errorf("consistency with %d: %w", old, err)
		}
	}
	fmt.Printf("verified: %d entries\n", tree.N)
	return nil
}

func checkReceipt(file, key string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, proofText, found := bytes.Cut(append([]byte("\n"), data...), []byte("\nc2sp.org/tlog-proof@v1\n"))
	if !found {
		return fmt.Errorf("no proof in %s", file)
	}
	head, checkpoint, found := bytes.Cut(proofText, []byte("\n\n"))
	if !found {
		return fmt.Errorf("no checkpoint in %s", file)
	}
	tree, err := openCheckpoint(checkpoint, key)
	if err != nil {
		return err
	}
	lines := strings.Split(string(head), "\n")
	entry, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[0], "extra "))
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry)); err != nil {
		return err
	}
	fmt.Printf("verified: entry %d of %d\n", index, tree.N)
	return nil
}

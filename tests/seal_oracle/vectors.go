package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type inclusion struct {
	Name  string   `json:"name"`
	Index uint64   `json:"index"`
	Size  uint64   `json:"size"`
	Leaf  string   `json:"leaf"`
	Root  string   `json:"root"`
	Proof []string `json:"proof"`
	Good  bool     `json:"good"`
}

type consistency struct {
	Name  string   `json:"name"`
	Old   uint64   `json:"old_size"`
	New   uint64   `json:"new_size"`
	OldR  string   `json:"old_root"`
	NewR  string   `json:"new_root"`
	Proof []string `json:"proof"`
	Good  bool     `json:"good"`
}

type signed struct {
	Text   string `json:"text"`
	Seed   string `json:"seed"`
	Public string `json:"public_key"`
	Note   string `json:"note"`
}

type vectors struct {
	Source      string        `json:"source"`
	Leaves      []string      `json:"leaves"`
	Roots       []string      `json:"roots"`
	Inclusion   []inclusion   `json:"inclusion"`
	Consistency []consistency `json:"consistency"`
	Tiles       []tileSet     `json:"tiles"`
	Notes       []signed      `json:"notes"`
}

type tileSet struct {
	Size  int64    `json:"size"`
	Paths []string `json:"paths"`
}

var hasher = rfc6962.DefaultHasher

func hexes(all [][]byte) []string {
	found := []string{}
	for _, each := range all {
		found = append(found, hex.EncodeToString(each))
	}
	return found
}

func bytesOf(all []string) [][]byte {
	var found [][]byte
	for _, each := range all {
		raw, err := hex.DecodeString(each)
		if err != nil {
			panic(err)
		}
		found = append(found, raw)
	}
	return found
}

// judged asks transparency-dev/merkle whether an inclusion proof is good.
func (v inclusion) judged() inclusion {
	raw := bytesOf([]string{v.Leaf, v.Root})
	err := proof.VerifyInclusion(hasher, v.Index, v.Size, raw[0], bytesOf(v.Proof), raw[1])
	v.Good = err == nil
	return v
}

func (v consistency) judged() consistency {
	raw := bytesOf([]string{v.OldR, v.NewR})
	err := proof.VerifyConsistency(hasher, v.Old, v.New, bytesOf(v.Proof), raw[0], raw[1])
	v.Good = err == nil
	return v
}

// flipped returns hex text with a bit of its first byte flipped.
func flipped(text string) string {
	raw := bytesOf([]string{text})[0]
	raw[0] ^= 16
	return hex.EncodeToString(raw)
}

// proofs returns what can become of a proof in bad hands, by name.
func proofs(good []string, others ...string) map[string][]string {
	bad := map[string][]string{
		"empty":             {},
		"preceding garbage": append([]string{strings.Repeat("00", 32)}, good...),
		"trailing garbage":  append(append([]string{}, good...), strings.Repeat("00", 32)),
		"trailing empty":    append(append([]string{}, good...), ""),
		"short trailing":    append(append([]string{}, good...), "00"),
	}
	for at, other := range others {
		bad[fmt.Sprintf("preceding hash %d", at)] = append([]string{other}, good...)
		bad[fmt.Sprintf("trailing hash %d", at)] = append(append([]string{}, good...), other)
	}
	if len(good) > 0 {
		bad["truncated"] = good[:len(good)-1]
		bad["beheaded"] = good[1:]
	}
	for at := range good {
		changed := append([]string{}, good...)
		changed[at] = flipped(good[at])
		bad[fmt.Sprintf("bit of hash %d", at)] = changed
	}
	return bad
}

func sortedNames(all map[string][]string) []string {
	var names []string
	for name := range all {
		at := 0
		for at < len(names) && names[at] < name {
			at++
		}
		names = append(names[:at], append([]string{name}, names[at:]...)...)
	}
	return names
}

func inclusions(tree *testonly.Tree, index, size uint64) []inclusion {
	path, err := tree.InclusionProof(index, size)
	if err != nil {
		panic(err)
	}
	good := inclusion{
		Name: fmt.Sprintf("%d in %d", index, size), Index: index, Size: size,
		Leaf: hex.EncodeToString(tree.LeafHash(index)), Root: hex.EncodeToString(tree.HashAt(size)),
		Proof: hexes(path),
	}
	all := []inclusion{good}
	with := func(what string, change func(*inclusion)) {
		bad := good
		bad.Name += ", " + what
		change(&bad)
		all = append(all, bad)
	}
	with("index - 1", func(v *inclusion) { v.Index-- })
	with("index + 1", func(v *inclusion) { v.Index++ })
	with("index ^ 2", func(v *inclusion) { v.Index ^= 2 })
	with("size / 2", func(v *inclusion) { v.Size /= 2 })
	with("size * 2", func(v *inclusion) { v.Size *= 2 })
	with("another leaf", func(v *inclusion) { v.Leaf = flipped(v.Leaf) })
	with("another root", func(v *inclusion) { v.Root = flipped(v.Root) })
	with("root for leaf", func(v *inclusion) { v.Leaf = v.Root })
	bad := proofs(good.Proof, good.Leaf, good.Root)
	for _, name := range sortedNames(bad) {
		with(name, func(v *inclusion) { v.Proof = bad[name] })
	}
	for at := range all {
		all[at] = all[at].judged()
	}
	return all
}

func consistencies(tree *testonly.Tree, before, after uint64) []consistency {
	path, err := tree.ConsistencyProof(before, after)
	if err != nil {
		panic(err)
	}
	good := consistency{
		Name: fmt.Sprintf("%d to %d", before, after), Old: before, New: after,
		OldR: hex.EncodeToString(tree.HashAt(before)), NewR: hex.EncodeToString(tree.HashAt(after)),
		Proof: hexes(path),
	}
	all := []consistency{good}
	with := func(what string, change func(*consistency)) {
		bad := good
		bad.Name += ", " + what
		change(&bad)
		all = append(all, bad)
	}
	with("old size - 1", func(v *consistency) { v.Old-- })
	with("old size + 1", func(v *consistency) { v.Old++ })
	with("old size ^ 2", func(v *consistency) { v.Old ^= 2 })
	with("new size * 2", func(v *consistency) { v.New *= 2 })
	with("new size / 2", func(v *consistency) { v.New /= 2 })
	with("another old root", func(v *consistency) { v.OldR = flipped(v.OldR) })
	with("another new root", func(v *consistency) { v.NewR = flipped(v.NewR) })
	with("swapped roots", func(v *consistency) { v.OldR, v.NewR = v.NewR, v.OldR })
	bad := proofs(good.Proof, good.OldR, good.NewR)
	for _, name := range sortedNames(bad) {
		with(name, func(v *consistency) { v.Proof = bad[name] })
	}
	for at := range all {
		all[at] = all[at].judged()
	}
	return all
}

func tilesOf(size int64) tileSet {
	set := tileSet{Size: size, Paths: []string{}}
	for _, tile := range tlog.NewTiles(8, 0, size) {
		set.Paths = append(set.Paths, "tile/"+strings.TrimPrefix(tile.Path(), "tile/8/"))
	}
	return set
}

func signedNote(name, text string, seed byte) signed {
	raw := make([]byte, ed25519.SeedSize)
	for at := range raw {
		raw[at] = seed
	}
	private := ed25519.NewKeyFromSeed(raw)
	public, err := note.NewEd25519VerifierKey(name, private.Public().(ed25519.PublicKey))
	if err != nil {
		panic(err)
	}
	hash := strings.Split(public, "+")[1]
	secret := "PRIVATE+KEY+" + name + "+" + hash + "+" +
		base64.StdEncoding.EncodeToString(append([]byte{1}, raw...))
	signer, err := note.NewSigner(secret)
	if err != nil {
		panic(err)
	}
	made, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		panic(err)
	}
	return signed{Text: text, Seed: hex.EncodeToString(raw), Public: public, Note: string(made)}
}

func printVectors() error {
	tree := testonly.New(hasher)
	tree.AppendData(testonly.LeafInputs()...)
	all := vectors{
		Source: "made by `go run . vectors` of tests/seal_oracle: leaves, roots, proofs and verdicts" +
			" of github.com/transparency-dev/merkle v0.0.2 (Apache-2.0), tiles and notes of" +
			" golang.org/x/mod v0.29.0 (BSD-3-Clause)",
		Leaves: hexes(testonly.LeafInputs()),
		Roots:  hexes(testonly.RootHashes()),
	}
	for _, at := range [][2]uint64{{0, 1}, {0, 8}, {5, 8}, {2, 3}, {1, 5}} {
		all.Inclusion = append(all.Inclusion, inclusions(tree, at[0], at[1])...)
	}
	for _, at := range [][2]uint64{{1, 1}, {1, 8}, {6, 8}, {2, 5}, {6, 7}} {
		all.Consistency = append(all.Consistency, consistencies(tree, at[0], at[1])...)
	}
	for _, size := range []int64{0, 1, 255, 256, 257, 70_000} {
		all.Tiles = append(all.Tiles, tilesOf(size))
	}
	all.Notes = []signed{
		signedNote("durabill.example/log", "durabill.example/log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n", 7),
		signedNote("billing", "first\n\nsecond: Ünïcode\n", 9),
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", " ")
	return out.Encode(all)
}

// A client of Durabill into Kafka, in Go, written from docs/contract.md alone.
//
//	client kafka      BOOTSTRAP_SERVERS, TOPIC, ORDERS, SEGMENTS, INTERVAL_MS: writes whole orders
//	client vectors F  encodes the segments of vectors/segments.json
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

var header, _ = hex.DecodeString("c301ba627070e049bb87")

// encode gives a segment in Avro's single-object encoding; Go's varint is zigzag too.
func encode(s Segment) []byte {
	out := binary.AppendVarint(bytes.Clone(header), int64(len(s.Order)))
	out = append(out, s.Order...)
	for _, number := range []int64{s.Number, s.StartMs, s.EndMs} {
		out = binary.AppendVarint(out, number)
	}
	if s.IsLast {
		return append(out, 1)
	}
	return append(out, 0)
}

// murmur2 is what partitions keys; franz-go does it by itself.
func murmur2(key []byte) uint32 {
	const m = 0x5bd1e995
	h := 0x9747b28c ^ uint32(len(key))
	for ; len(key) >= 4; key = key[4:] {
		k := binary.LittleEndian.Uint32(key) * m
		h = h*m ^ (k^k>>24)*m
	}
	if len(key) > 0 {
		for at := len(key) - 1; at >= 0; at-- {
			h ^= uint32(key[at]) << (8 * at)
		}
		h *= m
	}
	h = (h ^ h>>13) * m
	return h ^ h>>15
}

func intoKafka(orderCount, segmentCount, intervalMs int64) {
	// Its defaults are what the contract asks for: murmur2, and all in-sync replicas acknowledge.
	kafka, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(os.Getenv("BOOTSTRAP_SERVERS"), ",")...))
	if err != nil {
		log.Fatal(err)
	}
	defer kafka.Close()
	began := time.Now().UnixMilli() - segmentCount*intervalMs
	for range orderCount {
		order := "GO-" + rand.Text()
		var records []*kgo.Record
		for at := range segmentCount {
			start := began + at*intervalMs
			value := encode(Segment{order, at + 1, start, start + intervalMs, at+1 == segmentCount})
			records = append(records, &kgo.Record{Topic: os.Getenv("TOPIC"), Key: []byte(order), Value: value})
		}
		if err := kafka.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
			log.Fatal(err)
		}
		fmt.Println(order)
	}
}

func vectors(path string) {
	var file struct {
		Segments []struct {
			Segment struct {
				Order string `json:"service_order_number"`
				Segment
			} `json:"segment"`
		} `json:"segments"`
	}
	content, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(content, &file)
	}
	if err != nil {
		log.Fatal(err)
	}
	for _, each := range file.Segments {
		segment := each.Segment.Segment
		segment.Order = each.Segment.Order
		hash := murmur2([]byte(segment.Order))
		fmt.Printf("%x %08x", encode(segment), hash)
		for _, count := range []uint32{1, 4, 12, 100} {
			fmt.Printf(" %d", hash&0x7fffffff%count)
		}
		fmt.Println()
	}
}

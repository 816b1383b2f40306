// A client of Durabill in Go, written from docs/contract.md and docs/http.md alone.
//
//	client http       BASE_URL, ORDERS, SEGMENTS, INTERVAL_MS, TOKEN_FILE: over HTTP
//	client kafka      BOOTSTRAP_SERVERS, TOPIC, ORDERS, SEGMENTS, INTERVAL_MS: into Kafka
//	client vectors F  encodes the segments of vectors/segments.json
//
// It keeps unsent segments in memory; a client that may be killed keeps them on disk.
package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Segment is one segment of business data: [StartMs, EndMs) on the server's time.
type Segment struct {
	order   string
	Number  int64 `json:"business_data_number"`
	StartMs int64 `json:"start_ms"`
	EndMs   int64 `json:"end_ms"`
	IsLast  bool  `json:"end_identifier"`
}

// -- the contract in bytes: Avro's single-object encoding, and the partition of a key

var header, _ = hex.DecodeString("c301ba627070e049bb87")

func encode(s Segment) []byte {
	out := binary.AppendVarint(bytes.Clone(header), int64(len(s.order))) // Go's varint is zigzag too
	out = append(out, s.order...)
	for _, number := range []int64{s.Number, s.StartMs, s.EndMs} {
		out = binary.AppendVarint(out, number)
	}
	if s.IsLast {
		return append(out, 1)
	}
	return append(out, 0)
}

func murmur2(key []byte) uint32 {
	const m = 0x5bd1e995
	h := 0x9747b28c ^ uint32(len(key))
	for ; len(key) >= 4; key = key[4:] {
		k := binary.LittleEndian.Uint32(key) * m
		k = (k ^ k>>24) * m
		h = h*m ^ k
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

// -- over HTTP

type grant struct {
	Number     string `json:"service_order_number"`
	BaseMs     int64  `json:"server_timestamp_ms"`
	IntervalMs int64  `json:"report_interval_ms"`
	Lease      string `json:"lease"`
	began      time.Time
}

type upload struct {
	Number   string    `json:"service_order_number"`
	Lease    string    `json:"lease,omitempty"`
	Segments []Segment `json:"segments"`
}

type uploadAnswer struct {
	Number string `json:"service_order_number"`
	Count  int    `json:"count"`
	Errors []struct {
		Index  int    `json:"index"`
		Number int64  `json:"business_data_number"`
		Reason string `json:"reason"`
		Final  bool   `json:"final"`
	} `json:"errors"`
}

// Without an answer, or with one that breaks off, status is 0. body is nil unless it is JSON.
type answer struct {
	status int
	body   []byte
	wish   *time.Duration
}

var client = http.Client{
	Timeout:       15 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func post(path string, body any, headers ...string) answer {
	content, _ := json.Marshal(body)
	request, err := http.NewRequest("POST", os.Getenv("BASE_URL")+path, bytes.NewReader(content))
	if err != nil {
		log.Fatal(err)
	}
	request.GetBody = nil // Go would send a request again by itself, without a pause
	request.Header.Set("Content-Type", "application/json")
	if file := os.Getenv("TOKEN_FILE"); file != "" {
		token, _ := os.ReadFile(file) // at each request: it may be renewed
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	for at := 0; at+1 < len(headers); at += 2 {
		request.Header.Set(headers[at], headers[at+1])
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{}
	}
	defer response.Body.Close()
	content, err = io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return answer{}
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if kind != "application/json" && !strings.HasSuffix(kind, "+json") {
		content = nil
	}
	return answer{response.StatusCode, content, wishOf(response.Header)}
}

func wishOf(headers http.Header) *time.Duration {
	said := headers.Get("Retry-After")
	if seconds, err := strconv.ParseUint(said, 10, 31); err == nil {
		wish := time.Duration(seconds) * time.Second
		return &wish
	}
	until, err := http.ParseTime(said)
	if err != nil {
		return nil
	}
	now, err := http.ParseTime(headers.Get("Date")) // by the server's clock: ours may be wrong
	if err != nil {
		now = time.Now()
	}
	wish := max(until.Sub(now), 0)
	return &wish
}

// The server's wish with a jitter on top, else longer and longer: never less than the wish.
func pause(failures int, wish *time.Duration) {
	full := min(100*time.Millisecond<<min(failures, 20), 30*time.Second)
	if wish == nil {
		time.Sleep(full/2 + rand.N(full/2))
	} else {
		time.Sleep(*wish + rand.N(max(full, *wish/2)))
	}
}

func start() *grant {
	key := crand.Text() // the same for every try: a lost answer opens no second order
	for failures := 0; ; failures++ {
		said := post("/v1/orders", struct{}{}, "Idempotency-Key", key)
		order := grant{began: time.Now()}
		if said.status == 201 && json.Unmarshal(said.body, &order) == nil && order.Number != "" {
			return &order
		}
		pause(failures, said.wish)
	}
}

// measure cuts a segment every interval, by the monotonic clock alone: the wall clock may be wrong.
func measure(order *grant, count int64, out func(Segment)) {
	at := order.BaseMs
	for number := int64(1); number <= count; number++ {
		due := time.Duration(number*order.IntervalMs) * time.Millisecond
		time.Sleep(due - time.Since(order.began))
		end := at + order.IntervalMs
		if number == count {
			end = order.BaseMs + time.Since(order.began).Milliseconds()
		}
		out(Segment{order.Number, number, at, end, number == count})
		at = end
	}
}

// judged says of each segment sent whether it is settled; false for what is no gateway's answer.
func judged(said answer, sent []upload) (map[Segment]bool, []uploadAnswer, bool) {
	var body struct {
		Uploads []uploadAnswer `json:"uploads"`
	}
	if said.status != 200 || json.Unmarshal(said.body, &body) != nil || len(body.Uploads) != len(sent) {
		return nil, nil, false
	}
	settled := map[Segment]bool{}
	for at, each := range body.Uploads {
		if each.Number != sent[at].Number || each.Count != len(sent[at].Segments) {
			return nil, nil, false
		}
		for _, segment := range sent[at].Segments {
			settled[segment] = true
		}
		for _, wrong := range each.Errors {
			if wrong.Index < 0 || wrong.Index >= each.Count || sent[at].Segments[wrong.Index].Number != wrong.Number {
				return nil, nil, false
			}
			settled[sent[at].Segments[wrong.Index]] = wrong.Final
			if wrong.Final {
				log.Printf("%s/%d was refused: %s", each.Number, wrong.Number, wrong.Reason)
			}
		}
	}
	return settled, body.Uploads, true
}

func renew(orders map[string]*grant, uploads []uploadAnswer) {
	for _, each := range uploads {
		for _, wrong := range each.Errors {
			if !strings.HasPrefix(wrong.Reason, "LEASE_") {
				continue
			}
			var renewed grant
			order := orders[each.Number]
			said := post("/v1/orders/"+url.PathEscape(order.Number)+"/lease", struct{}{}, "Lease", order.Lease)
			if said.status < 300 && json.Unmarshal(said.body, &renewed) == nil && renewed.Lease != "" {
				order.Lease = renewed.Lease
			}
			break
		}
	}
}

func byOrder(segments []Segment, orders map[string]*grant) []upload {
	at := map[string]int{}
	var uploads []upload
	for _, each := range segments {
		if _, known := at[each.order]; !known {
			at[each.order] = len(uploads)
			uploads = append(uploads, upload{each.order, orders[each.order].Lease, nil})
		}
		own := &uploads[at[each.order]]
		own.Segments = append(own.Segments, each)
	}
	return uploads
}

func overHTTP(orderCount, segmentCount int64) {
	var lock sync.Mutex // guards waiting and measuring
	var waiting []Segment
	measuring := orderCount
	orders := map[string]*grant{}
	for range orderCount {
		order := start()
		orders[order.Number] = order
		go func() {
			measure(order, segmentCount, func(each Segment) {
				lock.Lock()
				defer lock.Unlock()
				waiting = append(waiting, each)
				if each.IsLast {
					measuring--
				}
			})
		}()
	}
	for limit, failures := 500, 0; ; {
		lock.Lock()
		batch, pending, isOver := append([]Segment{}, waiting[:min(limit, len(waiting))]...), len(waiting), measuring == 0
		lock.Unlock()
		if len(batch) == 0 {
			if isOver {
				return
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		sent := byOrder(batch, orders)
		report := map[string]any{"name": "go", "pending": pending}
		said := post("/v1/segments", map[string]any{"uploads": sent, "client": report})
		settled, uploads, isOurs := judged(said, sent)
		if said.status == 413 && limit > 1 { // whoever says so
			limit = max(1, len(batch)/2)
			continue
		}
		if !isOurs {
			pause(failures, said.wish)
			failures++
			continue
		}
		lock.Lock()
		var left []Segment
		for _, each := range waiting {
			if !settled[each] {
				left = append(left, each)
			}
		}
		hasProgress := len(left) < len(waiting)
		waiting = left
		lock.Unlock()
		limit, failures = min(500, limit*2), failures+1
		if hasProgress {
			failures = 0
		}
		renew(orders, uploads)
		if len(settled) > 0 && anyLeft(settled) {
			pause(failures, nil)
		}
	}
}

func anyLeft(settled map[Segment]bool) bool {
	for _, isSettled := range settled {
		if !isSettled {
			return true
		}
	}
	return false
}

// -- into Kafka

func intoKafka(orderCount, segmentCount, intervalMs int64) {
	// The default partitioner is Java's for keys: murmur2. All in-sync replicas acknowledge.
	kafka, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(os.Getenv("BOOTSTRAP_SERVERS"), ",")...))
	if err != nil {
		log.Fatal(err)
	}
	defer kafka.Close()
	began := time.Now().UnixMilli() - segmentCount*intervalMs
	for range orderCount {
		order := "GO-" + crand.Text()
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

// -- against the vectors

func vectors(path string) {
	content, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var file struct {
		Segments []struct {
			Segment struct {
				Order string `json:"service_order_number"`
				Segment
			} `json:"segment"`
			Partitions map[string]int `json:"partitions"`
		} `json:"segments"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		log.Fatal(err)
	}
	for _, each := range file.Segments {
		segment := each.Segment.Segment
		segment.order = each.Segment.Order
		hash := murmur2([]byte(segment.order))
		line := fmt.Sprintf("%x %08x", encode(segment), hash)
		var counts []int
		for count := range each.Partitions {
			number, _ := strconv.Atoi(count)
			counts = append(counts, number)
		}
		sort.Ints(counts)
		for _, count := range counts {
			line += fmt.Sprintf(" %d", int(hash&0x7fffffff)%count)
		}
		fmt.Println(line)
	}
}

func main() {
	number := func(name string) int64 {
		value, _ := strconv.ParseInt(os.Getenv(name), 10, 64)
		return value
	}
	switch {
	case len(os.Args) == 2 && os.Args[1] == "http":
		overHTTP(number("ORDERS"), number("SEGMENTS"))
	case len(os.Args) == 2 && os.Args[1] == "kafka":
		intoKafka(number("ORDERS"), number("SEGMENTS"), number("INTERVAL_MS"))
	case len(os.Args) == 3 && os.Args[1] == "vectors":
		vectors(os.Args[2])
	default:
		log.Fatal("usage: client http | kafka | vectors FILE")
	}
}

// A client of Durabill over HTTP, in Go, written from docs/http.md and docs/clients.md alone.
//
//	client http   BASE_URL, ORDERS, SEGMENTS, INTERVAL_MS, TOKEN_FILE: runs services, and reports them
//	client kafka, client vectors FILE: see kafka.go
//
// It keeps unsent segments in memory; a client that may be killed keeps them on disk.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"io"
	"log"
	random "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Service is one that runs; what isn't marked "-" is as the gateway grants it.
type Service struct {
	Order      string    `json:"service_order_number"`
	BaseMs     int64     `json:"server_timestamp_ms"`
	IntervalMs int64     `json:"report_interval_ms"`
	Lease      string    `json:"lease"`
	began      time.Time // by the monotonic clock: the wall clock may be wrong
	cut        int64     // so many segments so far
	waiting    []Segment
}

type Segment struct { // [StartMs, EndMs) on the server's time
	Order   string `json:"-"`
	Number  int64  `json:"business_data_number"`
	StartMs int64  `json:"start_ms"`
	EndMs   int64  `json:"end_ms"`
	IsLast  bool   `json:"end_identifier"`
}

type Upload struct { // what is sent of a service, and what is said of it
	Order    string    `json:"service_order_number"`
	Lease    string    `json:"lease,omitempty"`
	Segments []Segment `json:"segments,omitempty"`
	Count    int       `json:"count,omitempty"`
	Errors   []struct {
		Index  int
		Reason string
		Final  bool
	} `json:"errors,omitempty"`
}

type Uploads struct {
	Uploads []Upload       `json:"uploads"`
	Client  map[string]any `json:"client,omitempty"`
}

var client = http.Client{
	Timeout:       15 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// post reads JSON into answer. It returns the status, 0 without a whole answer, and the server's wish to wait.
func post(path string, body, answer any, header, value string) (int, time.Duration) {
	content, _ := json.Marshal(body)
	request, err := http.NewRequest("POST", os.Getenv("BASE_URL")+path, bytes.NewReader(content))
	if err != nil {
		log.Fatal(err)
	}
	request.GetBody = nil // else Go sends a request again by itself, without a pause
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(header, value)
	if token, err := os.ReadFile(os.Getenv("TOKEN_FILE")); err == nil { // at each request: it may be renewed
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, 0
	}
	defer response.Body.Close()
	if content, err = io.ReadAll(io.LimitReader(response.Body, 1<<20)); err != nil {
		return 0, 0
	}
	isJSON := strings.HasPrefix(response.Header.Get("Content-Type"), "application/json")
	if response.StatusCode < 300 && (!isJSON || json.Unmarshal(content, answer) != nil) {
		return 0, 0 // a login page, say
	}
	return response.StatusCode, wishOf(response.Header)
}

func wishOf(headers http.Header) time.Duration {
	if seconds, err := strconv.ParseUint(headers.Get("Retry-After"), 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	until, err := http.ParseTime(headers.Get("Retry-After"))
	now, odd := http.ParseTime(headers.Get("Date")) // by the server's clock: ours may be wrong
	if err != nil || odd != nil {
		return 0
	}
	return max(until.Sub(now), 0)
}

// pause waits for the server's wish, else longer and longer, with a jitter on top.
func pause(failures int, wish time.Duration) {
	least := max(wish, min(100*time.Millisecond<<min(failures, 9), 30*time.Second)/2)
	time.Sleep(least + random.N(least))
}

func start() *Service {
	var service Service
	key := rand.Text() // the same for every try: a lost answer opens no second order
	for failures := 0; ; failures++ {
		status, wish := post("/v1/orders", struct{}{}, &service, "Idempotency-Key", key)
		if service.began = time.Now(); status == 201 && service.Order != "" {
			return &service
		}
		pause(failures, wish)
	}
}

// measure cuts the segments that are due, each from where the one before ended.
func (s *Service) measure(count int64) {
	passedMs := time.Since(s.began).Milliseconds()
	for ; s.cut < count && passedMs >= (s.cut+1)*s.IntervalMs; s.cut++ {
		at := s.BaseMs + s.cut*s.IntervalMs
		s.waiting = append(s.waiting, Segment{s.Order, s.cut + 1, at, at + s.IntervalMs, s.cut+1 == count})
	}
}

// settle keeps what is to be sent again; it returns how much that is.
func (s *Service) settle(said Upload) int {
	var kept []Segment
	isOver := false
	for _, wrong := range said.Errors {
		each, isLease := s.waiting[wrong.Index], strings.HasPrefix(wrong.Reason, "LEASE_")
		isOver = isOver || isLease
		if wrong.Final && !isLease {
			log.Printf("%s/%d was refused: %s", each.Order, each.Number, wrong.Reason)
		} else {
			kept = append(kept, each)
		}
	}
	s.waiting = append(kept, s.waiting[said.Count:]...)
	if isOver {
		var renewed Service
		path := "/v1/orders/" + url.PathEscape(s.Order) + "/lease"
		if status, _ := post(path, struct{}{}, &renewed, "Lease", s.Lease); status == 200 && renewed.Lease != "" {
			s.Lease = renewed.Lease
		}
	}
	return len(kept)
}

// isAnswer says whether it is a gateway's answer to what was sent.
func isAnswer(said, sent []Upload) bool {
	if len(said) != len(sent) {
		return false
	}
	for at, each := range said {
		if each.Order != sent[at].Order || each.Count != len(sent[at].Segments) {
			return false
		}
		for _, wrong := range each.Errors {
			if wrong.Index < 0 || wrong.Index >= each.Count {
				return false
			}
		}
	}
	return true
}

func overHTTP(orderCount, segmentCount int64) {
	services := map[string]*Service{}
	for range orderCount {
		service := start()
		services[service.Order] = service
	}
	for limit, failures := 500, 0; ; {
		sent, count, pending, isRunning := []Upload{}, 0, 0, false
		for _, each := range services {
			each.measure(segmentCount)
			isRunning = isRunning || each.cut < segmentCount
			pending += len(each.waiting)
			if some := min(len(each.waiting), limit-count); some > 0 {
				sent = append(sent, Upload{Order: each.Order, Lease: each.Lease, Segments: each.waiting[:some]})
				count += some
			}
		}
		if count == 0 && !isRunning {
			return
		} else if count == 0 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		var said Uploads
		report := map[string]any{"name": "go", "pending": pending}
		status, wish := post("/v1/segments", Uploads{sent, report}, &said, "Accept", "application/json")
		if status == 413 && count > 1 { // whoever says so
			limit = count / 2
		} else if status != 200 || !isAnswer(said.Uploads, sent) { // it says nothing about a segment
			pause(failures, wish)
			failures++
		} else {
			kept := 0
			for _, each := range said.Uploads {
				kept += services[each.Order].settle(each)
			}
			limit, failures = min(500, limit*2), failures+1
			if kept < count {
				failures = 0
			}
			if kept > 0 {
				pause(failures, 0)
			}
		}
	}
}

func main() {
	number := func(name string) int64 {
		value, _ := strconv.ParseInt(os.Getenv(name), 10, 64)
		return value
	}
	switch mode := strings.Join(os.Args[1:], " "); {
	case mode == "http":
		overHTTP(number("ORDERS"), number("SEGMENTS"))
	case mode == "kafka":
		intoKafka(number("ORDERS"), number("SEGMENTS"), number("INTERVAL_MS"))
	case len(os.Args) == 3 && os.Args[1] == "vectors":
		vectors(os.Args[2])
	default:
		log.Fatal("usage: client http | kafka | vectors FILE")
	}
}

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

// Service is one that runs; what has a tag is as the gateway grants it.
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
	content, err = io.ReadAll(response.Body)
	isJSON := strings.HasPrefix(response.Header.Get("Content-Type"), "application/json")
	if err != nil || response.StatusCode < 300 && (!isJSON || json.Unmarshal(content, answer) != nil) {
		return 0, 0 // it breaks off, or is a login page
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
	return until.Sub(now)
}

// pause waits for the server's wish, else longer and longer, with a jitter on top.
func pause(failures int, wish time.Duration) {
	least := max(wish, min(50*time.Millisecond<<min(failures, 9), 15*time.Second))
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

// isAbout says whether it is a gateway's verdict of what was sent.
func (said Upload) isAbout(sent Upload) bool {
	for _, wrong := range said.Errors {
		if wrong.Index < 0 || wrong.Index >= len(sent.Segments) {
			return false
		}
	}
	return said.Order == sent.Order && said.Count == len(sent.Segments)
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
		s.renew()
	}
	return len(kept)
}

func (s *Service) renew() {
	var renewed Service
	status, wish := post("/v1/orders/"+url.PathEscape(s.Order)+"/lease", struct{}{}, &renewed, "Lease", s.Lease)
	if status == 200 && renewed.Lease != "" {
		s.Lease = renewed.Lease
	} else {
		pause(0, wish)
	}
}

func overHTTP(orderCount, segmentCount int64) {
	var services []*Service
	for range orderCount {
		services = append(services, start())
	}
	for limit, failures := 500, 0; ; {
		sent, senders, count, pending, isRunning := []Upload{}, []*Service{}, 0, 0, false
		for _, each := range services {
			each.measure(segmentCount)
			isRunning = isRunning || each.cut < segmentCount
			pending += len(each.waiting)
			if some := min(len(each.waiting), limit-count); some > 0 {
				sent = append(sent, Upload{Order: each.Order, Lease: each.Lease, Segments: each.waiting[:some]})
				senders = append(senders, each)
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
		isAnswer := status == 200 && len(said.Uploads) == len(sent)
		for at := 0; isAnswer && at < len(sent); at++ {
			isAnswer = said.Uploads[at].isAbout(sent[at])
		}
		if status == 413 && count > 1 { // whoever says so
			limit = count / 2
		} else if !isAnswer { // it says nothing about a segment
			pause(failures, wish)
			failures++
		} else {
			kept := 0
			for at, each := range senders {
				kept += each.settle(said.Uploads[at])
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

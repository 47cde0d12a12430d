package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pgfailproxy/cluster"
)

var update = flag.Bool("update", false, "write the golden files")

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func lag(n uint64) *uint64 { return &n }

// serving is pg2 after a failover from pg1, which came back on its old timeline;
// pg3 follows pg2, and pg4 is away.
func serving() Status {
	return Status{
		Version: "0.1.0", Time: noon, State: "serving", Since: noon.Add(-123 * time.Second),
		Epoch: 2, System: 7301234567890123456, Timeline: 2, Primary: "pg2", Address: "10.0.0.2:5432",
		Members: []Member{
			{Name: "pg1", Role: "primary", Reach: "answered", Address: "10.0.0.1:5432", System: 7301234567890123456, Timeline: 1, LSN: 0x5000060,
				LastAnswer: noon.Add(-300 * time.Millisecond), ProbeSeconds: 0.0011, ServerVersion: 180006},
			{Name: "pg2", Role: "primary", Reach: "answered", Address: "10.0.0.2:5432", System: 7301234567890123456, Timeline: 2, LSN: 0x16_B374D848,
				LastAnswer: noon.Add(-900 * time.Millisecond), ProbeSeconds: 0.0008, ServerVersion: 180006},
			{Name: "pg3", Role: "standby", Reach: "answered", Address: "10.0.0.3:5432", System: 7301234567890123456, Timeline: 2, LSN: 0x16_B3700000, Replayed: 0x16_B3700000,
				Streaming: true, LagBytes: lag(317512), LastAnswer: noon.Add(-700 * time.Millisecond), ProbeSeconds: 0.0009, ServerVersion: 170002},
			{Name: "pg4", Role: "standby", Reach: "refused", Error: "dial tcp 10.0.0.4:5432: connect: connection refused", Address: "10.0.0.4:5432", Timeline: 1,
				Misses: 12, LastAnswer: noon.Add(-75 * time.Minute), ServerVersion: 180006},
		},
		Sessions: Sessions{Open: 42, Held: 0, Total: 1234, Refused: 1},
		Failovers: []Failover{{
			Epoch: 2, From: "pg1", To: "pg2", Cause: "connection refused, 3 times", Started: noon.Add(-124 * time.Second),
			Phases: []Phase{{"detect", 0.201}, {"fence", 0.012}, {"drain", 0.003}, {"promote", 0.094}, {"open", 0.004}}, Seconds: 0.314,
			LastSeen: cluster.Position{Timeline: 1, LSN: 0x5000060}, LastSeenAt: noon.Add(-125 * time.Second),
			PromotedAt: cluster.Position{Timeline: 1, LSN: 0x5000060}, Verdict: "unknown",
		}},
		Detection: Detection{CrashSeconds: 0.2, HangSeconds: 4},
	}
}

// halted is after the failover of serving, with pg2 lost too.
func halted() Status {
	s := serving()
	s.State, s.Held, s.Address, s.Epoch = "halted", true, "", 3
	s.Reason = "no standby can be promoted: pg3 lacks 317512 bytes, max_lag_bytes is 0: raise it, or bring pg2 back"
	s.Since = noon.Add(-3 * time.Second)
	s.Sessions.Held = 42
	s.Members[1] = Member{Name: "pg2", Role: "unknown", Reach: "silent", Error: "no answer\nwithin\x1b[31m 1s", Misses: 3}
	s.Members[2].Streaming, s.Members[2].LagBytes = false, lag(0)
	s.Failovers[0].Verdict, s.Failovers[0].BytesAtRisk = "at risk", 320_000
	return s
}

func handler(s Status) http.Handler {
	return New(Options{Status: func() Status { return s }, Gatherer: prometheus.NewRegistry()}).Handler()
}

func do(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestHealthChecksAnswerAsLoadBalancersKnowThem(t *testing.T) {
	suspecting := serving()
	suspecting.State, suspecting.Address = "suspecting", ""
	foreign := serving()
	foreign.Members[2].System = 1
	lagging := serving()
	lagging.Members[2].Timeline = 1
	for _, tt := range []struct {
		status Status
		path   string
		code   int
		body   string
	}{
		{serving(), "/healthz", 200, "alive"},
		{serving(), "/readyz", 200, "pg2"},
		{serving(), "/primary", 200, "pg2"},
		{serving(), "/primary/pg2", 200, "pg2"},
		{serving(), "/primary/pg1", 503, "pg1 is not the primary, pg2 is"}, // writable, but not ours
		{serving(), "/primary/pg9", 404, `there is no member "pg9"`},
		{serving(), "/replica/pg3", 200, "pg3"},
		{serving(), "/replica/pg2", 503, "it is not a standby"},
		{serving(), "/replica/pg4", 503, "connection refused"},
		{serving(), "/replica/pg9", 404, `there is no member "pg9"`},
		{serving(), "/replica", 404, ""},
		{serving(), "/nothing", 404, ""},
		{foreign, "/replica/pg3", 503, "it belongs to another database cluster"},
		{lagging, "/replica/pg3", 503, "it is on another timeline than the primary"},
		{suspecting, "/primary", 503, "no primary is served: the proxy is suspecting"},
		{halted(), "/healthz", 200, "alive"},
		{halted(), "/readyz", 503, "no standby can be promoted"},
		{halted(), "/primary", 503, "no standby can be promoted"},
		{halted(), "/primary/pg2", 503, "no standby can be promoted"},
		{halted(), "/replica/pg3", 503, "it is not streaming"},
		{Status{}, "/healthz", 200, "alive"},
		{Status{}, "/readyz", 503, "no primary is served"},
	} {
		h := handler(tt.status)
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			if method == "OPTIONS" && tt.body == "" {
				continue // no health check
			}
			w := do(h, method, tt.path)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.body) {
				t.Errorf("%s: %s %s: %d %q; want %d %q", tt.status.State, method, tt.path, w.Code, w.Body, tt.code, tt.body)
			}
		}
	}
}

func TestOnlyReadingIsAllowed(t *testing.T) {
	h := handler(serving())
	for _, path := range []string{"/", "/status", "/metrics", "/healthz", "/readyz", "/primary", "/primary/pg2", "/replica/pg3"} {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
			if w := do(h, method, path); w.Code != http.StatusMethodNotAllowed || !strings.Contains(w.Header().Get("Allow"), "GET") {
				t.Errorf("%s %s: %d, Allow %q", method, path, w.Code, w.Header().Get("Allow"))
			}
		}
	}
}

func TestStatusIsCompleteJSON(t *testing.T) {
	w := do(handler(serving()), "GET", "/status")
	golden(t, "status.json", w.Body.Bytes())
	if got := w.Header(); got.Get("Content-Type") != "application/json" || got.Get("Cache-Control") != "no-store" {
		t.Errorf("header %v", got)
	}
	// What is not known is null, empty or zero; a list is never null.
	w = do(handler(Status{}), "GET", "/status")
	if bare := do(handler(Status{Failovers: []Failover{{}}}), "GET", "/status"); !strings.Contains(bare.Body.String(), `"phases": []`) {
		t.Errorf("no phases are not an empty list: %s", bare.Body)
	}
	for _, want := range []string{`"members": []`, `"failovers": []`, `"system": "0"`} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("lacks %s: %s", want, w.Body)
		}
	}
	if w := do(handler(halted()), "GET", "/status"); !strings.Contains(w.Body.String(), `"lag_bytes": null`) {
		t.Errorf("unknown lag is not null: %s", w.Body)
	}
}

func TestAtMostTenFailoversAreShown(t *testing.T) {
	s := serving()
	for range 20 {
		s.Failovers = append(s.Failovers, Failover{From: "a", To: "b"})
	}
	var got Status
	if err := json.Unmarshal(do(handler(s), "GET", "/status").Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Failovers) != MaxFailovers || got.Failovers[0].From != "pg1" {
		t.Errorf("%d failovers, the first from %s", len(got.Failovers), got.Failovers[0].From)
	}
}

func TestMetricsAreThoseOfTheGatherer(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "pgfailproxy_test_total", Help: "x"})
	reg.MustRegister(c)
	c.Add(7)
	w := do(New(Options{Status: serving, Gatherer: reg}).Handler(), "GET", "/metrics")
	if w.Code != 200 || !strings.Contains(w.Body.String(), "pgfailproxy_test_total 7") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestThePageShowsMembersAndEscapesWhatServersSay(t *testing.T) {
	s := halted()
	s.Members[1].Error = "<script>alert(1)</script>"
	w := do(handler(s), "GET", "/")
	body := w.Body.String()
	for _, want := range []string{"pg1", "pg3", "no standby can be promoted", "16/B3700000", `http-equiv="refresh"`, "&lt;script&gt;"} {
		if !strings.Contains(body, want) {
			t.Errorf("lacks %q: %s", want, body)
		}
	}
	if w.Code != 200 || strings.Contains(body, "<script") || strings.Contains(body, "\x1b") {
		t.Errorf("%d %s", w.Code, body)
	}
	if w := do(handler(Status{}), "GET", "/"); w.Code != 200 {
		t.Errorf("with nothing known: %d", w.Code)
	}
}

func TestTheTableForPeople(t *testing.T) {
	for name, s := range map[string]Status{"serving": serving(), "halted": halted(), "starting": {State: "starting", Time: noon, Members: []Member{{Name: "pg1", Reach: "not asked"}}}} {
		var b bytes.Buffer
		if err := WriteTable(&b, s); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".txt", b.Bytes())
	}
}

func TestAPrimaryThatWasKeptIsNotCalledAFailoverToItself(t *testing.T) {
	got := strings.Join(story(Failover{Epoch: 4, From: "pg1", To: "pg1", Started: noon, Seconds: 1.5, Verdict: "zero"}), "\n")
	if want := "pg1 came back and was kept, epoch 4, 2026-03-04 12:00:00.000Z, in 1.500 s\nloss: none"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAgesAndSizesReadWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0.0s", 990 * time.Millisecond: "0.9s", 9999 * time.Millisecond: "9.9s", 10 * time.Second: "10s", 59 * time.Second: "59s",
		time.Minute: "1m0s", 59*time.Minute + 59*time.Second: "59m59s", time.Hour: "1h0m", 47 * time.Hour: "47h0m", 50 * time.Hour: "2d2h",
	} {
		if got := age(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 16 << 20: "16.0 MiB", 1 << 62: "4194304.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// start serves s on a loopback port until the test ends, and returns its address.
func start(t *testing.T, srv *Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return ln.Addr().String()
}

func TestFetchBringsTheWholeStatus(t *testing.T) {
	addr := start(t, New(Options{Status: halted, Gatherer: prometheus.NewRegistry()}))
	_, port, _ := net.SplitHostPort(addr)
	for _, addr := range []string{addr, ":" + port, "0.0.0.0:" + port} {
		got, err := Fetch(t.Context(), addr)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, halted()) {
			t.Errorf("%s: got %+v\nwant %+v", addr, got, halted())
		}
	}
}

func TestFetchSaysWhatToDoWhenNobodyAnswers(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	text := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer text.Close()
	away := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:1/elsewhere", http.StatusFound))
	defer away.Close()
	for addr, want := range map[string]string{
		ln.Addr().String():             "is pgfailproxy running",
		other.Listener.Addr().String(): "the answer is 404 Not Found",
		text.Listener.Addr().String():  "the answer cannot be read",
		away.Listener.Addr().String():  "the answer is 302 Found",
		"":                             "it is not an address",
		"8008":                         "it is not an address",
	} {
		_, err := Fetch(t.Context(), addr)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%q: %v; want %s", addr, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Fetch(ctx, text.Listener.Addr().String()); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled question: %v", err)
	}
}

func TestHugeHeadersAreRefused(t *testing.T) {
	addr := start(t, New(Options{Status: serving, Gatherer: prometheus.NewRegistry()}))
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return // the connection was closed while we were still sending
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%s", resp.Status)
	}
}

// countingListener counts the connections that are accepted and not closed.
type countingListener struct {
	net.Listener
	open atomic.Int64
}

type countedConn struct {
	net.Conn
	open *atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.open.Add(1)
		c = countedConn{c, &l.open}
	}
	return c, err
}

func (c countedConn) Close() error { c.open.Add(-1); return c.Conn.Close() }

func TestNoMoreConnectionsThanTheLimitAreTaken(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counting := &countingListener{Listener: inner}
	ln := newLimitListener(counting, 2)
	accepted := make(chan net.Conn)
	done := make(chan error, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				done <- err
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first, second := <-accepted, <-accepted
	if n := counting.open.Load(); n != 2 {
		t.Errorf("%d connections are open, want 2", n)
	}
	first.Close()
	first.Close() // gives one slot back, not two
	third := <-accepted
	if n := len(ln.slots); n != 2 {
		t.Errorf("%d slots are taken, want 2", n)
	}
	ln.Close() // while Accept waits for a slot
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	second.Close()
	third.Close()
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// Package admin shows how the proxy is over HTTP: a page for people, JSON and
// metrics for programs, health checks for load balancers; and it is the client
// of that JSON. It only reads snapshots and changes nothing.
package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// The port has no password, so that what one visitor may cost is bounded.
const (
	readTimeout  = 5 * time.Second  // for a request
	writeTimeout = 30 * time.Second // for an answer; /metrics may be long
	idleTimeout  = 30 * time.Second // between two requests of a connection
	maxHeader    = 16 << 10         // bytes
	maxConns     = 128              // at once; others wait to be accepted
	maxGathers   = 4                // of /metrics at once
)

// Options are what a Server shows.
type Options struct {
	// Status returns the present snapshot. It is called from several goroutines
	// and must not block; what it returns is not changed by either side.
	Status func() Status
	// Sessions returns the sessions that there are, in the same way.
	Sessions func() []Session
	// Gatherer is what /metrics shows.
	Gatherer prometheus.Gatherer
	// Log takes errors of connections, at debug level; nil discards them.
	Log *slog.Logger
}

// Server is the HTTP server.
type Server struct {
	opts Options
	http http.Server
}

// New returns a Server. Nothing runs until Serve.
func New(opts Options) *Server {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: opts}
	s.http = http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers requests on ln, which it closes, until Shutdown; then it returns
// http.ErrServerClosed at once, as net/http's does.
func (s *Server) Serve(ln net.Listener) error {
	return s.http.Serve(newLimitListener(ln, maxConns))
}

// Shutdown stops Serve and waits for answers that are being written. When ctx
// ends first, it closes their connections and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	return err
}

// Handler returns the handler of all paths. Those for health checks take OPTIONS
// too, which HAProxy's option httpchk sends by default, and answer as to GET.
// Other methods get 405.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /sessions", s.sessions)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.opts.Gatherer, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
		MaxRequestsInFlight: maxGathers,
	}))
	for path, check := range map[string]func(Status, string) verdict{
		"/healthz":          alive,
		"/readyz":           primary,
		"/primary":          primary,
		"/primary/{member}": primaryIs,
		"/replica/{member}": replicaIs,
	} {
		h := func(w http.ResponseWriter, r *http.Request) {
			v := check(s.snapshot(), r.PathValue("member"))
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.WriteHeader(v.code)
			fmt.Fprintln(w, oneLine(v.text))
		}
		mux.HandleFunc("GET "+path, h)
		mux.HandleFunc("OPTIONS "+path, h)
	}
	return headers(mux)
}

// headers keeps answers out of caches, and out of what a browser might take them
// for.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		next.ServeHTTP(w, r)
	})
}

// snapshot returns the present Status, complete for JSON.
func (s *Server) snapshot() Status {
	st := s.opts.Status()
	if st.Time.IsZero() {
		st.Time = time.Now()
	}
	if st.Members == nil {
		st.Members = []Member{}
	}
	shown := make([]Failover, min(len(st.Failovers), MaxFailovers))
	for i := range shown {
		shown[i] = st.Failovers[i]
		if shown[i].Phases == nil {
			shown[i].Phases = []Phase{}
		}
	}
	st.Failovers = shown
	return st
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	s.writeJSON(w, "status", s.snapshot())
}

func (s *Server) writeJSON(w http.ResponseWriter, what string, value any) {
	body, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		s.fail(w, what, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(body, '\n'))
}

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	var body bytes.Buffer
	if err := page.Execute(&body, s.snapshot()); err != nil {
		s.fail(w, "page", err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(body.Bytes())
}

// fail is for errors that only a mistake of ours can cause.
func (s *Server) fail(w http.ResponseWriter, what string, err error) {
	s.opts.Log.Error("admin cannot show the "+what, "cause", err)
	http.Error(w, "cannot show the "+what+": see the log", http.StatusInternalServerError)
}

// verdict is the answer to a health check.
type verdict struct {
	code int
	text string
}

func alive(Status, string) verdict { return verdict{http.StatusOK, "alive"} }

func primary(s Status, _ string) verdict {
	if !s.Served() {
		return verdict{http.StatusServiceUnavailable, s.Why()}
	}
	return verdict{http.StatusOK, s.Primary}
}

func primaryIs(s Status, name string) verdict {
	switch {
	case s.member(name) == nil:
		return unknown(name)
	case !s.Served():
		return verdict{http.StatusServiceUnavailable, s.Why()}
	case s.Primary != name:
		return verdict{http.StatusServiceUnavailable, fmt.Sprintf("%s is not the primary, %s is", name, s.Primary)}
	}
	return verdict{http.StatusOK, name}
}

func replicaIs(s Status, name string) verdict {
	m := s.member(name)
	if m == nil {
		return unknown(name)
	}
	if why := s.notReplica(m); why != "" {
		return verdict{http.StatusServiceUnavailable, name + " is not a streaming standby of the primary: " + why}
	}
	return verdict{http.StatusOK, name}
}

func unknown(name string) verdict {
	return verdict{http.StatusNotFound, fmt.Sprintf("there is no member %q", name)}
}

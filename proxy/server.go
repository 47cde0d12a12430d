package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"pgfailproxy/cluster"
	"pgfailproxy/internal/tcp"
	"pgfailproxy/relay"
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("proxy: server closed")

// Options are the choices for a Server.
type Options struct {
	// HoldTimeout is how long a client waits for a primary. It must be
	// positive.
	HoldTimeout time.Duration
	// LoginTimeout is how long a client may take until it is logged in, without
	// the time that it is held, and a server for its first answer. It must be
	// positive.
	LoginTimeout time.Duration
	// ConnectTimeout bounds one attempt to connect to a server. It must be
	// positive.
	ConnectTimeout time.Duration
	// ClientIdle is how long a client may be idle outside a transaction. 0 means
	// for ever.
	ClientIdle time.Duration
	// MaxClients is how many clients are served at a time, MaxPerRole and
	// MaxPerDatabase how many of one role and one database. 0 means no limit.
	MaxClients, MaxPerRole, MaxPerDatabase int
	// Passthrough: sessions are not followed, TLS goes through end to end, and
	// what follows but Dial and TCP means nothing.
	Passthrough bool
	// ClientTLS is for clients that ask for TLS. nil: they are told that there is
	// none.
	ClientTLS *ClientTLS
	// ServerTLS says whether and how a member is spoken to over TLS. nil: never.
	ServerTLS func(member string) ServerTLS
	// Terminate has the proxy log clients in. nil: the server does.
	Terminate *Terminate
	// TCP is for both sides of every session.
	TCP tcp.Options
	// Dial connects to a server. nil means a dialer with the options of TCP.
	Dial func(ctx context.Context, addr cluster.Addr) (net.Conn, error)
}

const (
	// retryPause is the time between two attempts to reach the same server.
	retryPause = 100 * time.Millisecond
	// maxTurnedAway is how many clients above MaxClients are told so at a time;
	// what comes on top is closed without a word.
	maxTurnedAway = 100
	// acceptPause is how long accepting rests after an error such as too many
	// open files.
	acceptPause = 50 * time.Millisecond
	// maxLooks is how many sessions may at a time look whether a server that ended
	// them still serves.
	maxLooks = 4
)

// Server accepts clients and serves each with a session.
type Server struct {
	router  *Router
	opts    Options
	log     *slog.Logger
	metrics *metrics
	mover   *relay.Mover
	keys    *cancelKeys
	limits  limits
	looks   *semaphore.Weighted
	mock    [32]byte // what unknown roles are challenged with is made from this
	noTLS   sync.Once

	ctx   context.Context // of all sessions
	close context.CancelCauseFunc
	// drain ends what waits for a primary, and leaves alone what runs.
	drain    context.Context
	endDrain context.CancelCauseFunc

	open, held, turned atomic.Int64
	total, refused     atomic.Int64
	running            sync.WaitGroup // sessions, and who looks after the idle ones

	mu        sync.Mutex // guards what follows
	listeners map[net.Listener]bool
	sessions  map[*session]struct{}
	closing   bool
	nextID    uint64
}

// Stats are counts of client connections.
type Stats struct {
	Open    int64 // now, held ones among them
	Held    int64 // waiting for a primary
	Total   int64 // accepted since the start
	Refused int64 // of the total, answered with an error of ours
}

// New returns a Server for router. Its metrics are registered with reg.
func New(router *Router, opts Options, log *slog.Logger, reg prometheus.Registerer) *Server {
	if opts.Dial == nil {
		dialer := opts.TCP.Dialer()
		opts.Dial = func(ctx context.Context, addr cluster.Addr) (net.Conn, error) {
			return dialer.DialContext(ctx, addr.Network, addr.Address)
		}
	}
	s := &Server{router: router, opts: opts, log: log, mover: relay.NewMover(0), keys: newCancelKeys(), looks: semaphore.NewWeighted(maxLooks),
		limits: newLimits(opts), listeners: map[net.Listener]bool{}, sessions: map[*session]struct{}{}}
	rand.Read(s.mock[:]) // never fails
	s.ctx, s.close = context.WithCancelCause(context.Background())
	s.drain, s.endDrain = context.WithCancelCause(s.ctx)
	s.metrics = newMetrics(reg, s)
	if opts.ClientIdle > 0 {
		s.running.Go(s.endIdle)
	}
	return s
}

// Stats returns the present counts.
func (s *Server) Stats() Stats {
	return Stats{Open: s.open.Load(), Held: s.held.Load(), Total: s.total.Load(), Refused: s.refused.Load()}
}

// Serve accepts clients on ln until Shutdown or Close, and closes ln. It always
// returns an error, then ErrServerClosed.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	if !s.track(ln) {
		return ErrServerClosed
	}
	failing := false
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			failing = false
			s.accept(conn)
		case s.isClosing():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			// Such as too many open files: the sessions that there are go on, and
			// so do we when some have ended.
			if !failing {
				s.log.Error("clients cannot be accepted for now", "cause", err)
			}
			failing = true
			select {
			case <-time.After(acceptPause):
			case <-s.drain.Done():
			}
		}
	}
}

func (s *Server) track(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.listeners[ln] = true
	return true
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// accept starts a session for conn, or turns it away.
func (s *Server) accept(conn net.Conn) {
	s.total.Add(1)
	if err := s.opts.TCP.Apply(conn); err != nil {
		conn.Close() // it is gone already
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		conn.Close()
		return
	}
	s.nextID++
	sess := newSession(s, s.nextID, conn)
	if most := s.opts.MaxClients; most > 0 && s.open.Load() >= int64(most) {
		if s.turned.Add(1) > maxTurnedAway {
			s.turned.Add(-1)
			s.refuse("too_many_clients")
			conn.Close()
			return
		}
		s.running.Go(func() { defer s.turned.Add(-1); sess.turnAway() })
		return
	}
	s.open.Add(1)
	s.sessions[sess] = struct{}{}
	s.running.Add(1) // until forget: the session outlives the goroutine that starts it
	go sess.run()
}

// forget is the end of a session.
func (s *Server) forget(sess *session) {
	s.limits.give(sess)
	s.mu.Lock()
	delete(s.sessions, sess)
	s.mu.Unlock()
	s.open.Add(-1)
	s.running.Done()
}

// all returns the sessions that there are.
func (s *Server) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.sessions))
}

func (s *Server) refuse(reason string) {
	s.refused.Add(1)
	s.metrics.refused.WithLabelValues(reason).Inc()
}

// warnNoTLS says once that a client wanted TLS, and that there is none.
func (s *Server) warnNoTLS() {
	s.noTLS.Do(func() {
		s.log.Info("a client asked for TLS, and the proxy has none for clients: set client_tls_cert and client_tls_key, or sessions: passthrough for TLS that goes through to the server")
	})
}

// Shutdown stops accepting and lets sessions finish; clients that wait for a
// primary are told to go. When ctx ends first, the rest is ended, and ctx's
// cause is returned. It returns nil as soon as there is no session.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	defer s.Close()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.Close()
	return context.Cause(ctx)
}

// Close ends everything at once and waits for it. Clients are told, if they can
// be within a moment.
func (s *Server) Close() error {
	s.stop()
	s.close(ErrServerClosed)
	for _, sess := range s.all() {
		sess.cut(ErrServerClosed)
	}
	s.running.Wait()
	s.mover.Close()
	return nil
}

// stop closes the listeners. No session begins afterwards.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for ln := range s.listeners {
		ln.Close()
	}
	s.endDrain(ErrServerClosed)
}

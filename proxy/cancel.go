package proxy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"io"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"pgfailproxy/pgwire"
)

const (
	// cancelTimeout bounds a cancel request, which the server answers by closing
	// the connection.
	cancelTimeout = 5 * time.Second
	// wrongKeys and wrongBurst are how many wrong keys a second, and at once, are
	// compared without making anyone wait. Up to protocol 3.0 a key has 32 bits: at
	// this rate one of a thousand sessions is hit in days, not in seconds.
	wrongKeys  = 10
	wrongBurst = 100
)

// cancelKey is a session's key for cancel requests: the process id of its server,
// which clients may show to people, and a secret of ours as long as the server's
// own. That is never shown: it would be of no use after a failover, and would work
// past the proxy.
type cancelKey []byte

func (k cancelKey) pid() uint32 { return binary.BigEndian.Uint32(k) }

// cancelKeys finds the session that a key belongs to.
type cancelKeys struct {
	wrong *rate.Limiter // of keys that belong to none

	mu    sync.Mutex
	byPID map[uint32][]*session // several where servers gave out the same
}

func newCancelKeys() *cancelKeys {
	return &cancelKeys{wrong: rate.NewLimiter(wrongKeys, wrongBurst), byPID: map[uint32][]*session{}}
}

// issue gives s a key, and returns the server's BackendKeyData with it in place
// of the server's own.
func (k *cancelKeys) issue(s *session, raw []byte) []byte {
	ours := append([]byte(nil), raw...)
	rand.Read(ours[5+4:]) // never fails
	s.key = ours[5:]
	k.mu.Lock()
	defer k.mu.Unlock()
	k.byPID[s.key.pid()] = append(k.byPID[s.key.pid()], s)
	return ours
}

func (k *cancelKeys) remove(s *session) {
	if s.key == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	pid := s.key.pid()
	kept := k.byPID[pid][:0]
	for _, other := range k.byPID[pid] {
		if other != s {
			kept = append(kept, other)
		}
	}
	if len(kept) == 0 {
		delete(k.byPID, pid)
		return
	}
	clear(k.byPID[pid][len(kept):])
	k.byPID[pid] = kept
}

// find returns the session of a key, or nil. Who guesses has to wait, and so has
// everybody while somebody does: before the comparison, or its result would show.
func (k *cancelKeys) find(ctx context.Context, key []byte) *session {
	if k.wrong.Tokens() < 1 {
		turn, cancel := context.WithTimeout(ctx, cancelTimeout)
		defer cancel()
		if k.wrong.Wait(turn) != nil {
			return nil
		}
	}
	k.mu.Lock()
	var found *session
	for _, s := range k.byPID[binary.BigEndian.Uint32(key)] {
		if subtle.ConstantTimeCompare(s.key, key) == 1 {
			found = s
		}
	}
	k.mu.Unlock()
	if found == nil {
		k.wrong.Allow()
	}
	return found
}

// cancelRequest handles a request to cancel what another session runs. The client
// gets no answer but the end: PostgreSQL does it so.
func (s *session) cancelRequest(raw []byte) {
	var result string
	if s.server.opts.Passthrough {
		result = s.server.cancelBlind(raw)
	} else if target := s.server.keys.find(s.server.ctx, raw[8:]); target == nil {
		result = "wrong_key"
		s.debug("cancel request with a wrong key", "client", s.peer)
	} else {
		result = target.cancel()
	}
	s.server.metrics.cancels.WithLabelValues(result).Inc()
}

// cancel has the session's server cancel what it runs, and returns when that has
// been told. If it runs nothing of the client's, nothing is sent: it would hit
// what comes next.
func (s *session) cancel() (result string) {
	s.mu.Lock()
	flow := s.flow
	s.mu.Unlock()
	if flow == nil {
		return "idle"
	}
	busy := false
	flow.Inspect(func() { busy = s.tracker.busy() || s.tracker.walsender })
	if !busy {
		return "idle"
	}
	return s.server.sendCancel(s.link.route, pgwire.CancelRequest(s.link.key), true)
}

// cancelBlind passes a cancel request on to the primary as it came: the key is
// the server's own. It never waits for a primary: what was to be cancelled is
// gone then.
func (s *Server) cancelBlind(raw []byte) (result string) {
	route := s.router.Running()
	if route == nil {
		return "no_primary"
	}
	return s.sendCancel(route, raw, false)
}

// sendCancel sends a cancel request to a route's member.
func (s *Server) sendCancel(route *Route, raw []byte, encrypted bool) (result string) {
	ctx, cancel := context.WithTimeout(s.ctx, cancelTimeout)
	defer cancel()
	defer context.AfterFunc(route.Context(), cancel)()
	l := &link{route: route}
	if err := s.connect(ctx, l, encrypted); err != nil {
		return "unreachable"
	}
	defer l.conn.Close()
	defer context.AfterFunc(ctx, func() { l.conn.Close() })()
	if _, err := l.conn.Write(raw); err != nil {
		return "unreachable"
	}
	// The server closes once it has acted; until then the client waits, so that
	// its next query is not the one that is hit.
	io.Copy(io.Discard, io.LimitReader(l.conn, 1<<10))
	return "forwarded"
}

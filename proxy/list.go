package proxy

import (
	"cmp"
	"slices"
	"time"
)

// SessionInfo is what can be seen of a session. There is no text of a query in
// it.
type SessionInfo struct {
	ID                          uint64
	Client                      string // address
	User, Database, Application string
	TLS                         bool // of the client
	State                       State
	Since                       time.Time // State holds
	Began                       time.Time
	Member                      string // empty while it has none
	FromClient, FromServer      int64  // bytes relayed
}

// Sessions returns all sessions, the oldest first.
func (s *Server) Sessions() []SessionInfo {
	var out []SessionInfo
	for _, sess := range s.all() {
		out = append(out, sess.info())
	}
	slices.SortFunc(out, func(a, b SessionInfo) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (s *session) info() SessionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := SessionInfo{ID: s.id, Client: s.peer, Began: s.began, State: s.state, Since: s.since}
	look := func() {
		i.User, i.Database, i.Application, i.TLS = s.who.user, s.who.database, s.who.application, s.who.tls
	}
	if s.flow == nil {
		look()
		return i
	}
	i.FromClient, i.FromServer = s.flow.Moved()
	i.Member = s.link.route.Member
	s.flow.Inspect(func() {
		look()
		i.State, i.Since = StateBlind, s.since
		if !s.server.opts.Passthrough {
			i.State = s.tracker.state()
			if s.turned.After(i.Since) {
				i.Since = s.turned
			}
		}
	})
	return i
}

// endIdle ends the sessions that were idle for too long.
func (s *Server) endIdle() {
	tick := time.NewTicker(max(s.opts.ClientIdle/10, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.drain.Done():
			return
		}
		for _, sess := range s.all() {
			if i := sess.info(); i.State == StateIdle && time.Since(i.Since) >= s.opts.ClientIdle {
				sess.cut(errIdle)
			}
		}
	}
}

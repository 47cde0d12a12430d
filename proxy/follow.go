package proxy

import (
	"bytes"
	"context"
	"errors"
	"time"

	"pgfailproxy/pgwire"
	"pgfailproxy/relay"
)

var (
	errLateKey    = errors.New("the server sent a key for cancel requests after the login")
	errServerLost = errors.New("the connection to the server was lost")
	// errIdle is the cause of a session's end after ClientIdle.
	errIdle = errors.New("the session was idle for too long")
)

// ending is what the watcher has found that ends a session.
type ending struct {
	// garbage is a message that cannot be, and from whom it came.
	garbage error
	from    relay.Side
	// fatal is the server's last message, which the client has not been shown: it
	// may have another word to say about it.
	fatal []byte
	// clientEnded: the client sends nothing more. clientLeaves: it said so.
	clientEnded, clientLeaves bool
}

// follower is a session as the watcher of what the relay moves. The relay calls
// it, one call at a time.
type follower session

// Arrived has the tracker see every message before it is passed on. Messages are
// passed on whole, unless they are large, so that there is always a place for a
// word of ours.
func (f *follower) Arrived(from relay.Side, p []byte) (v relay.Verdict) {
	before := f.tracker.state()
	for v.Pass < len(p) {
		m, n, err := pgwire.Next(p[v.Pass:])
		if err != nil {
			f.ending.garbage, f.ending.from = err, from
			v.Stop = true
			break
		}
		if n == 0 {
			break
		}
		if from == relay.A {
			f.fromClient(m)
		} else if !f.fromServer(m, p[v.Pass:v.Pass+n]) {
			v.Stop = true
			break
		}
		v.Pass += n
		v.Unseen = m.Rest
	}
	if f.tracker.state() != before {
		f.turned = time.Now()
	}
	return v
}

func (f *follower) fromClient(m pgwire.Frame) {
	f.passed += m.Size
	f.tracker.fromClient(m, f.passed)
	if m.Kind == 'X' {
		f.ending.clientLeaves = true
	}
}

// fromServer reports whether the message may go to the client.
func (f *follower) fromServer(m pgwire.Frame, raw []byte) bool {
	switch m.Kind {
	case 'E':
		if pgwire.IsFatal(raw) && m.Rest == 0 {
			f.ending.fatal = bytes.Clone(raw)
			return false
		}
	case 'K': // would be the server's own
		f.ending.garbage, f.ending.from = errLateKey, relay.B
		return false
	case 'S':
		if name, value, ok := pgwire.ParameterStatus(m.Body); ok && string(name) == "application_name" {
			f.who.application = string(value)
		}
	}
	f.tracker.fromServer(m)
	return true
}

// Ended passes a client's end on: it may still want the answers. A server's end
// is a session's, and its client gets a word about it.
func (f *follower) Ended(from relay.Side) (passOn bool) {
	if from == relay.A {
		f.ending.clientEnded = true
	}
	return f.ending.clientEnded
}

// conclude ends the session after the relay has. cause is why it was cut, if it
// was. It returns why the session ended; nil for a usual end.
func (s *session) conclude(r relay.Result, cause error) error {
	client, server := r.Conn[relay.A], r.Conn[relay.B]
	defer client.Close()
	if server != nil {
		defer server.Close()
	}
	e := &s.ending
	switch {
	case r.Reason == relay.WasCut:
		s.farewell(r, cause)
		return cause
	case r.Reason == relay.Finished || e.clientLeaves:
		return nil
	case s.server.opts.Passthrough:
		return r.Err
	case e.garbage != nil && e.from == relay.A:
		s.server.say(client, r.Unwritten[relay.B], pgwire.Error{Code: "08P01", Message: e.garbage.Error()})
		return e.garbage
	case e.fatal != nil:
		return s.serverSaid(r)
	case r.Reason == relay.Failed && r.From == relay.A:
		return errClientGone
	}
	s.server.router.Doubt(s.link.route)
	s.farewell(r, errServerLost)
	return errServerLost
}

// serverSaid handles a server's last message. One that ends sessions because it
// stops is our client's loss of its primary, and the client is told what that
// means; one that is meant for this session alone goes to the client as it is.
func (s *session) serverSaid(r relay.Result) error {
	code := pgwire.SQLState(s.ending.fatal)
	if stops(code) && !s.server.stillServes(s.link, s.who) {
		s.server.router.Doubt(s.link.route)
		s.farewell(r, errServerLost)
		return errServerLost
	}
	if r.Unseen[relay.B] == 0 {
		s.server.sayRaw(r.Conn[relay.A], r.Unwritten[relay.B], s.ending.fatal)
	}
	return errors.New(pgwire.ErrorText(s.ending.fatal))
}

// stops reports whether a server that ends a session with code may be ending all:
// admin_shutdown, crash_shutdown, cannot_connect_now.
func stops(code string) bool { return code == "57P01" || code == "57P02" || code == "57P03" }

// stillServes reports whether a member goes on as the primary: whether it would
// take the session again.
func (s *Server) stillServes(l *link, who identity) bool {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(l.route.Context(), cancel)()
	if s.looks.Acquire(ctx, 1) != nil { // a server that stops ends all at once
		return false
	}
	defer s.looks.Release(1)
	if now, _ := s.router.Current(); now == nil || now.term != l.route.term {
		return false
	}
	packet, err := pgwire.Startup(who.user, who.database)
	if err != nil {
		return true
	}
	look := &link{route: l.route}
	if err := s.connect(ctx, look, true); err != nil {
		return false
	}
	defer look.conn.Close()
	defer context.AfterFunc(ctx, func() { look.conn.Close() })()
	if _, err := look.conn.Write(packet); err != nil {
		return false
	}
	_, raw, err := pgwire.ReadMessage(look.conn)
	return err == nil && !busy(pgwire.SQLState(raw))
}

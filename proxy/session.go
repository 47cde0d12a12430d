package proxy

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"pgfailproxy/pgwire"
	"pgfailproxy/relay"
)

const (
	// readAhead is the buffer for a client's start-up, in bytes: room for a TLS
	// handshake's beginning, so that a client that waits with it can be seen to
	// leave. It is gone once the session runs.
	readAhead = 4 << 10
	// farewell bounds how long a client may take to read its last message.
	farewell = time.Second
)

var (
	errHoldTimeout = errors.New("no primary within hold_timeout")
	errClientGone  = errors.New("the client is gone")
)

// session is one client, from its first byte to its last. Until bytes are
// relayed one goroutine runs it and owns both connections; then the relay does,
// and the session has no goroutine; then conclude has one of its own.
type session struct {
	server *Server
	id     uint64
	peer   string // the client's address
	began  time.Time

	// Of the start: nil or zero once bytes are relayed.
	client net.Conn
	in     *bufio.Reader // of client
	// patience is what is left of HoldTimeout: what the client spends between its
	// packets is its own time, and what it is held is not.
	patience time.Duration
	leaf     *x509.Certificate // that the client was shown
	certName string            // common name of the client's own certificate

	who     identity
	link    *link // set before the relay begins
	key     cancelKey
	counted bool // in limits

	// What follows is seen to while bytes are relayed: by the watcher, and by
	// whoever calls flow.Inspect.
	tracker tracker
	passed  int64 // bytes of the client's stream that the tracker knows
	ending  ending
	turned  time.Time // the tracker's state holds
	told    string    // SQLSTATE of our last word to the client; empty if there was none

	mu    sync.Mutex // guards what follows
	state State      // until bytes are relayed; then the tracker knows
	since time.Time  // state holds
	flow  *relay.Flow
	cause error // why the session was cut
}

// identity is who a client says it is.
type identity struct {
	user, database, application string
	replication                 bool // a walsender's session
	physical                    bool // of no database
	tls                         bool
}

func newSession(s *Server, id uint64, client net.Conn) *session {
	now := time.Now()
	return &session{
		server: s, id: id, client: client, in: bufio.NewReaderSize(client, readAhead),
		peer: client.RemoteAddr().String(), began: now, since: now, patience: s.opts.HoldTimeout,
	}
}

func (s *session) debug(text string, attrs ...any) {
	s.server.log.Debug(text, append([]any{"session", s.id}, attrs...)...)
}

// become sets the state until bytes are relayed.
func (s *session) become(state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.since = state, time.Now()
}

// run serves the client until bytes are relayed, or it has enough.
func (s *session) run() {
	// What blocks in a read or write ends when the server closes.
	client := s.client
	stop := context.AfterFunc(s.server.ctx, func() { client.Close() })
	running, err := s.start()
	stop()
	if !running {
		if s.client != nil {
			s.client.Close()
		}
		s.end(err)
	}
}

// end is the last that is heard of a session.
func (s *session) end(err error) {
	s.server.keys.remove(s)
	s.server.metrics.ended.WithLabelValues(endCause(err)).Inc()
	s.debug("session ended", "cause", err, "took", time.Since(s.began))
	s.server.forget(s)
}

// endCause is the label for how a session ended.
func endCause(err error) string {
	var gone *GoneError
	switch {
	case err == nil || errors.Is(err, errClientGone):
		return "finished"
	case errors.As(err, &gone):
		return "failover"
	case errors.Is(err, errServerLost):
		return "server_lost"
	case errors.Is(err, errIdle):
		return "idle"
	case errors.Is(err, ErrServerClosed) || errors.Is(err, net.ErrClosed): // who else closes the client
		return "shutdown"
	default:
		return "error"
	}
}

// start brings the session to where bytes only need to be moved. It reports
// whether they are; then the relay owns the connections.
func (s *session) start() (running bool, _ error) {
	var l *link
	var err error
	if s.server.opts.Passthrough {
		l, err = s.startBlind()
	} else {
		l, err = s.startFollowed()
	}
	if l == nil || err != nil {
		return false, err
	}
	s.debug("session begins", "member", l.route.Member, "client", s.peer, "user", s.who.user, "database", s.who.database)
	return s.relay(l)
}

// relay gives both connections to the relay, with what was read ahead.
func (s *session) relay(l *link) (running bool, err error) {
	pair := relay.Pair{Conn: [2]net.Conn{relay.A: s.client, relay.B: l.conn}}
	pair.Kept[relay.A] = buffered(s.in)
	pair.Kept[relay.B] = l.ahead
	pair.Unwritten[relay.B] = l.answer
	l.ahead, l.answer = nil, nil
	s.in = nil
	s.link = l
	s.client.SetDeadline(time.Time{})
	l.conn.SetDeadline(time.Time{})
	s.tracker = newTracker(s.who.replication)
	if !l.route.term.join(s) {
		return false, s.conclude(relay.Result{Pair: pair, Reason: relay.WasCut}, context.Cause(l.route.Context()))
	}
	var watcher relay.Watcher
	if !s.server.opts.Passthrough {
		watcher = (*follower)(s)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = nil
	s.since = time.Now()
	s.flow = s.server.mover.Start(pair, watcher, s.done)
	if s.cause != nil { // meanwhile
		s.flow.Cut()
	}
	return true, nil
}

// buffered returns what r has read ahead.
func buffered(r *bufio.Reader) []byte {
	if r == nil || r.Buffered() == 0 {
		return nil
	}
	ahead, _ := r.Peek(r.Buffered()) // it is there
	return append([]byte(nil), ahead...)
}

// cut ends the session for cause, which its client is told if it can be.
func (s *session) cut(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return
	}
	s.cause = cause
	if s.flow != nil {
		s.flow.Cut()
	}
}

// done is called when the relay has given the connections back.
func (s *session) done(r relay.Result) {
	s.mu.Lock()
	cause := s.cause
	s.mu.Unlock()
	err := s.conclude(r, cause)
	s.link.route.term.leave(s, s.told)
	s.end(err)
}

// readPacket reads one start-up packet. A server that shuts down does not wait
// for it: the error is ErrServerClosed then.
func (s *session) readPacket() (pgwire.Packet, error) {
	s.client.SetReadDeadline(s.due())
	stop := context.AfterFunc(s.server.drain, func() { s.client.SetReadDeadline(longPast) })
	packet, err := pgwire.ReadPacket(s.in)
	if !stop() {
		return packet, ErrServerClosed
	}
	s.client.SetReadDeadline(time.Time{})
	return packet, err
}

// due is when the client has to be logged in. The time that it was held does not
// count.
func (s *session) due() time.Time {
	held := s.server.opts.HoldTimeout - s.patience
	return s.began.Add(s.server.opts.LoginTimeout + held)
}

// badStart answers what was no start-up packet, where there is somebody to read
// the answer.
func (s *session) badStart(err error) error {
	var p *pgwire.ProtocolError
	switch {
	case errors.As(err, &p):
		s.refuse("protocol", pgwire.Error{Code: p.Code, Message: p.Message})
	case errors.Is(err, ErrServerClosed):
		s.refuse("shutting_down", shuttingDown)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.refuse("login_timeout", pgwire.Error{Code: "08P01", Message: "canceling authentication due to timeout",
			Detail: fmt.Sprintf("The client was not logged in within %s.", s.server.opts.LoginTimeout)})
	case errors.Is(err, io.EOF):
		return errClientGone // a look whether the port is open
	}
	return err
}

var shuttingDown = pgwire.Error{Code: "57P03", Message: "the proxy is shutting down", Hint: "Connect again in a moment."}

// unreached tells the client why it has no server.
func (s *session) unreached(packet pgwire.Packet, err error) error {
	var p *pgwire.ProtocolError
	var reason string
	var e pgwire.Error
	switch {
	case errors.Is(err, errHoldTimeout):
		reason, e = "no_primary", s.noPrimary()
	case errors.Is(err, ErrServerClosed):
		reason, e = "shutting_down", shuttingDown
	case errors.As(err, &p):
		reason, e = "protocol", pgwire.Error{Code: p.Code, Message: p.Message}
	default:
		return err // the client is gone
	}
	switch packet.Kind {
	case pgwire.KindSSL:
		// It would not show an error in answer to its request; without TLS it
		// goes on to its start-up packet, and then shows it.
		s.client.SetDeadline(time.Now().Add(farewell))
		if _, err := s.client.Write([]byte{'N'}); err != nil {
			return err
		}
		if _, err := pgwire.ReadPacket(s.in); err != nil {
			s.server.refuse(reason)
			return err
		}
	case pgwire.KindDirectTLS:
		s.server.refuse(reason)
		return err // there is no way to say it before the handshake
	}
	s.refuse(reason, e)
	return err
}

func (s *session) noPrimary() pgwire.Error {
	_, why := s.server.router.Current()
	if why == "" {
		why = "it could not be reached"
	}
	return pgwire.Error{
		Code: "57P03", Message: "no primary server is available",
		Detail: fmt.Sprintf("Waited %s for a primary server: %s.", s.server.opts.HoldTimeout, why),
		Hint:   "Try again later; \"pgfailproxy status\" shows what the proxy is doing.",
	}
}

// turnAway tells a client that there are too many, after its first packets. A
// request to cancel is served all the same: it makes room.
func (s *session) turnAway() {
	defer s.client.Close()
	defer context.AfterFunc(s.server.ctx, func() { s.client.Close() })()
	for range 3 { // GSS, SSL, start-up
		packet, err := s.readPacket()
		if err != nil {
			return
		}
		switch packet.Kind {
		case pgwire.KindCancel:
			s.cancelRequest(packet.Raw)
			return
		case pgwire.KindGSS, pgwire.KindSSL:
			if _, err := s.client.Write([]byte{'N'}); err != nil {
				return
			}
			continue
		case pgwire.KindDirectTLS:
			s.server.refuse("too_many_clients")
			return
		}
		s.refuse("too_many_clients", pgwire.Error{Code: "53300", Message: "sorry, too many clients already",
			Detail: fmt.Sprintf("The proxy serves at most %d clients at a time.", s.server.opts.MaxClients),
			Hint:   "Raise max_client_connections of the proxy, or use a pool."})
		return
	}
}

// refuse tells a client that is not served why.
func (s *session) refuse(reason string, e pgwire.Error) {
	s.server.refuse(reason)
	s.debug("client refused", "cause", e.Message)
	s.server.say(s.client, nil, e)
}

// say sends a client its last message after what else is owed to it, and gives it
// a moment to read them: a connection that is closed with bytes unread is reset,
// and they are lost. The caller closes the connection.
func (s *Server) say(client net.Conn, owed []byte, e pgwire.Error) {
	message, err := pgwire.Fatal(e)
	if err != nil {
		return
	}
	s.sayRaw(client, owed, message)
}

func (s *Server) sayRaw(client net.Conn, owed, message []byte) {
	client.SetDeadline(time.Now().Add(farewell))
	if _, err := client.Write(append(owed[:len(owed):len(owed)], message...)); err != nil {
		return
	}
	if c, ok := client.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		io.Copy(io.Discard, io.LimitReader(client, 1<<20))
	}
}

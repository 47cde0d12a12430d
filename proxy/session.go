package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
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
	// cancelTimeout bounds a cancel request, which the server answers by closing
	// the connection.
	cancelTimeout = 5 * time.Second
)

var (
	errHoldTimeout = errors.New("no primary within hold_timeout")
	errClientGone  = errors.New("the client is gone")
)

// session is one client, from its first byte to its last. One goroutine runs
// it and owns both connections.
type session struct {
	server *Server
	log    *slog.Logger
	client net.Conn
	in     *bufio.Reader // of client; nil once bytes are relayed
	began  time.Time
	// patience is what is left of HoldTimeout: what the client spends between its
	// packets is its own time.
	patience time.Duration
}

func newSession(s *Server, id uint64, client net.Conn) *session {
	return &session{
		server: s, client: client, in: bufio.NewReaderSize(client, readAhead), began: time.Now(), patience: s.opts.HoldTimeout,
		log: s.log.With("session", id),
	}
}

// run serves the client until one of them has enough.
func (s *session) run() {
	defer s.client.Close()
	// What blocks in a read or write ends when the server closes.
	defer context.AfterFunc(s.server.ctx, func() { s.client.Close() })()
	err := s.serve()
	s.server.metrics.ended.WithLabelValues(endCause(err)).Inc()
	s.log.Debug("session ended", "cause", err, "took", time.Since(s.began))
}

// endCause is the label for how a session ended.
func endCause(err error) string {
	var gone *GoneError
	switch {
	case err == nil || errors.Is(err, errClientGone):
		return "finished"
	case errors.As(err, &gone):
		return "failover"
	case errors.Is(err, ErrServerClosed) || errors.Is(err, net.ErrClosed): // who else closes the client
		return "shutdown"
	default:
		return "error"
	}
}

func (s *session) serve() error {
	packet, link, err := s.startup()
	if err != nil || packet.Kind == pgwire.KindCancel {
		return err
	}
	defer link.conn.Close()
	s.log.Debug("session begins", "member", link.route.Member, "client", s.client.RemoteAddr().String(),
		"user", packet.Param("user"), "database", packet.Param("database"))
	if err := s.catchUp(link); err != nil {
		return err
	}
	link.route.term.running.Add(1)
	err = relay.Run(link.route.Context(), s.client, link.conn, &s.server.bytes)
	link.route.leave(err, s.server.log)
	return err
}

// catchUp brings both sides to where bytes only need to be moved: the client
// gets the server's answer, the server what the client had sent beyond its
// packet. Then the buffer is given up.
func (s *session) catchUp(l *link) error {
	limit := time.Now().Add(s.server.opts.StartupTimeout)
	s.client.SetWriteDeadline(limit)
	if _, err := s.client.Write(l.answer); err != nil {
		return err
	}
	s.client.SetWriteDeadline(time.Time{})
	ahead, err := s.in.Peek(s.in.Buffered())
	if err != nil {
		return err
	}
	s.in = nil
	if len(ahead) == 0 {
		return nil
	}
	if l.route.Context().Err() != nil {
		return context.Cause(l.route.Context())
	}
	l.conn.SetWriteDeadline(limit)
	if _, err := l.conn.Write(ahead); err != nil {
		return err
	}
	return l.conn.SetWriteDeadline(time.Time{})
}

// startup reads the client's start-up packets and answers them, until a server
// has taken one: then it returns that server's link. A cancel request is dealt
// with here.
func (s *session) startup() (pgwire.Packet, *link, error) {
	var spare *link // a server that refused TLS and waits for a start-up packet
	defer func() {
		if spare != nil {
			spare.conn.Close()
		}
	}()
	var askedGSS, askedSSL bool
	for {
		packet, err := s.readPacket()
		if err != nil {
			return packet, nil, s.badStart(err)
		}
		switch packet.Kind {
		case pgwire.KindCancel:
			s.forwardCancel(packet.Raw)
			return packet, nil, nil
		case pgwire.KindGSS:
			if askedGSS || s.in.Buffered() > 0 {
				return packet, nil, s.badStart(errUnencrypted)
			}
			askedGSS = true
			// Never passed on: the server may say yes, and TLS is what is kept.
			if _, err := s.client.Write([]byte{'N'}); err != nil {
				return packet, nil, err
			}
			continue
		case pgwire.KindSSL:
			if askedSSL || s.in.Buffered() > 0 {
				return packet, nil, s.badStart(errUnencrypted)
			}
			askedSSL = true
		}
		l, err := s.reach(packet, spare)
		spare = nil
		if err != nil {
			return packet, nil, s.unreached(packet, err)
		}
		if packet.Kind != pgwire.KindSSL {
			return packet, l, nil
		}
		if s.in.Buffered() > 0 { // came while it waited
			l.conn.Close()
			return packet, nil, s.badStart(errUnencrypted)
		}
		if l.answer[0] != 'N' {
			return packet, l, nil
		}
		spare = l
		if _, err := s.client.Write(l.answer); err != nil {
			return packet, nil, err
		}
	}
}

// errUnencrypted is PostgreSQL's own answer to bytes that somebody may have
// slipped in before the encryption.
var errUnencrypted = &pgwire.ProtocolError{Code: "08P01", Message: "received unencrypted data after a request for encryption"}

// readPacket reads one start-up packet. A server that shuts down does not wait
// for it: the error is ErrServerClosed then.
func (s *session) readPacket() (pgwire.Packet, error) {
	s.client.SetReadDeadline(time.Now().Add(s.server.opts.StartupTimeout))
	stop := context.AfterFunc(s.server.drain, func() { s.client.SetReadDeadline(longPast) })
	packet, err := pgwire.ReadPacket(s.in)
	if !stop() {
		return packet, ErrServerClosed
	}
	s.client.SetReadDeadline(time.Time{})
	return packet, err
}

// badStart answers what was no start-up packet, where there is somebody to read
// the answer.
func (s *session) badStart(err error) error {
	var p *pgwire.ProtocolError
	switch {
	case errors.As(err, &p):
		s.fatal("protocol", pgwire.Error{Code: p.Code, Message: p.Message})
	case errors.Is(err, ErrServerClosed):
		s.fatal("shutting_down", shuttingDown)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.fatal("startup_timeout", pgwire.Error{Code: "08P01", Message: "canceling authentication due to timeout",
			Detail: fmt.Sprintf("No complete start-up packet arrived within %s.", s.server.opts.StartupTimeout)})
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
	s.fatal(reason, e)
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
			s.forwardCancel(packet.Raw)
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
		s.fatal("too_many_clients", pgwire.Error{Code: "53300", Message: "sorry, too many clients already",
			Detail: fmt.Sprintf("The proxy serves at most %d clients at a time.", s.server.opts.MaxConnections),
			Hint:   "Raise max_connections of the proxy, or use a pool."})
		return
	}
}

// fatal sends the client its last message, and gives it a moment to read it: a
// connection that is closed with bytes unread is reset, and the message is lost.
func (s *session) fatal(reason string, e pgwire.Error) {
	s.server.refuse(reason)
	s.log.Debug("client refused", "cause", e.Message)
	s.client.SetDeadline(time.Now().Add(farewell))
	message, err := pgwire.Fatal(e)
	if err != nil {
		return
	}
	if _, err := s.client.Write(message); err != nil {
		return
	}
	if c, ok := s.client.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		io.Copy(io.Discard, io.LimitReader(s.client, 1<<20))
	}
}

// forwardCancel passes a cancel request on to the primary. It never waits for
// one: what was to be cancelled is gone then.
func (s *session) forwardCancel(raw []byte) {
	result := "no_primary"
	defer func() { s.server.metrics.cancels.WithLabelValues(result).Inc() }()
	route := s.server.router.Running()
	if route == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.server.ctx, cancelTimeout)
	defer cancel()
	conn, err := s.server.opts.Dial(ctx, route.Addr)
	if err != nil {
		result = "unreachable"
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(cancelTimeout))
	if _, err := conn.Write(raw); err != nil {
		result = "unreachable"
		return
	}
	// The server closes once it has acted; until then the client waits, so that
	// its next query is not the one that is hit.
	io.Copy(io.Discard, io.LimitReader(conn, 1<<10))
	result = "forwarded"
}

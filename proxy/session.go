package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"pgfailproxy/pgwire"
	"pgfailproxy/relay"
)

const (
	// readAhead is the buffer for a client's start-up, in bytes. It is gone once
	// the session runs.
	readAhead = 512
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
	// plain says that the client was told, with 'N', to go on without TLS.
	plain bool
}

func newSession(s *Server, id uint64, client net.Conn) *session {
	return &session{
		server: s, client: client, in: bufio.NewReaderSize(client, readAhead), began: time.Now(),
		log: s.log.With("session", id),
	}
}

// run serves the client until one of them has enough.
func (s *session) run() {
	defer s.client.Close()
	// What blocks in a read or write ends when the server closes.
	defer context.AfterFunc(s.server.ctx, func() { s.client.Close() })()
	err := s.serve()
	cause := "finished"
	var gone *GoneError
	switch {
	case errors.As(err, &gone):
		cause = "failover"
	case err != nil && !errors.Is(err, errClientGone):
		cause = "error"
	}
	s.server.metrics.ended.WithLabelValues(cause).Inc()
	s.log.Debug("session ended", "cause", err, "took", time.Since(s.began))
}

func (s *session) serve() error {
	packet, link, err := s.startup()
	if err != nil || packet.Kind == pgwire.KindCancel {
		return err
	}
	defer link.conn.Close()
	s.log.Debug("session begins", "member", link.route.Member, "client", s.client.RemoteAddr().String(),
		"user", packet.Param("user"), "database", packet.Param("database"))
	if _, err := s.client.Write(link.answer); err != nil {
		return err
	}
	if err := s.flushReadAhead(link.conn); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(link.route.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.server.ctx, func() { cancel(ErrServerClosed) })()
	return relay.Run(ctx, s.client, link.conn, &s.server.bytes)
}

// flushReadAhead sends on what the client had sent beyond its start-up packet,
// and gives the buffer up.
func (s *session) flushReadAhead(to net.Conn) error {
	ahead, err := s.in.Peek(s.in.Buffered())
	if err == nil && len(ahead) > 0 {
		_, err = to.Write(ahead)
	}
	s.in = nil
	return err
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
	asked := map[pgwire.Kind]bool{}
	for {
		packet, err := s.readPacket()
		if err != nil {
			return packet, nil, s.badStart(err)
		}
		switch packet.Kind {
		case pgwire.KindCancel:
			s.forwardCancel(packet.Raw)
			return packet, nil, nil
		case pgwire.KindGSS, pgwire.KindSSL:
			if asked[packet.Kind] || s.in.Buffered() > 0 {
				return packet, nil, s.badStart(&pgwire.ProtocolError{Code: "08P01", Message: "received unencrypted data after a request for encryption"})
			}
			asked[packet.Kind] = true
		}
		if packet.Kind == pgwire.KindGSS {
			// Never passed on: the server may say yes, and TLS is what is kept.
			if _, err := s.client.Write([]byte{'N'}); err != nil {
				return packet, nil, err
			}
			continue
		}
		l, err := s.reach(packet, spare)
		spare = nil
		if err != nil {
			return packet, nil, s.unreached(packet, err)
		}
		if packet.Kind != pgwire.KindSSL || l.answer[0] != 'N' {
			return packet, l, nil
		}
		if _, err := s.client.Write(l.answer); err != nil {
			l.conn.Close()
			return packet, nil, err
		}
		s.plain, spare = true, l
	}
}

func (s *session) readPacket() (pgwire.Packet, error) {
	s.client.SetReadDeadline(time.Now().Add(s.server.opts.StartupTimeout))
	defer s.client.SetReadDeadline(time.Time{})
	return pgwire.ReadPacket(s.in)
}

// badStart answers what was no start-up packet, where there is somebody to read
// the answer.
func (s *session) badStart(err error) error {
	var p *pgwire.ProtocolError
	var timeout net.Error
	switch {
	case errors.As(err, &p):
		s.fatal("protocol", pgwire.Error{Code: p.Code, Message: p.Message})
	case errors.As(err, &timeout) && timeout.Timeout():
		s.fatal("start-up timeout", pgwire.Error{Code: "08P01", Message: "canceling authentication due to timeout",
			Detail: fmt.Sprintf("No complete start-up packet arrived within %s.", s.server.opts.StartupTimeout)})
	case errors.Is(err, io.EOF):
		return errClientGone // a look whether the port is open
	}
	return err
}

// unreached tells the client why it has no server.
func (s *session) unreached(packet pgwire.Packet, err error) error {
	var p *pgwire.ProtocolError
	e := pgwire.Error{Code: "57P03", Message: "no primary server is available"}
	reason := "no primary"
	switch {
	case errors.Is(err, errHoldTimeout):
		_, why := s.server.router.Current()
		e.Detail = fmt.Sprintf("Waited %s for a primary server: %s.", s.server.opts.HoldTimeout, orElse(why, "it could not be reached"))
		e.Hint = "Try again later; \"pgfailproxy status\" shows what the proxy is doing."
	case errors.Is(err, ErrServerClosed):
		e.Message = "the proxy is shutting down"
		e.Hint = "Connect again in a moment."
		reason = "shutting down"
	case errors.As(err, &p):
		e = pgwire.Error{Code: p.Code, Message: p.Message}
		reason = "protocol"
	default:
		return err // the client is gone
	}
	switch packet.Kind {
	case pgwire.KindSSL:
		// It would not show an error in answer to its request; without TLS it
		// goes on to its start-up packet, and then shows it.
		if _, err := s.client.Write([]byte{'N'}); err != nil {
			return err
		}
		if _, err := s.readPacket(); err != nil {
			return err
		}
	case pgwire.KindDirectTLS:
		s.server.refuse(reason)
		return err // there is no way to say it before the handshake
	}
	s.fatal(reason, e)
	return err
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
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
			s.server.refuse("too many clients")
			return
		}
		s.fatal("too many clients", pgwire.Error{Code: "53300", Message: "sorry, too many clients already",
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
	result := "no primary"
	defer func() { s.server.metrics.cancels.WithLabelValues(result).Inc() }()
	route, _ := s.server.router.Current()
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

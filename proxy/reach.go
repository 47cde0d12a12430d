package proxy

import (
	"bufio"
	"context"
	"errors"
	"net"
	"time"

	"pgfailproxy/pgwire"
)

// link is a server that has taken a client's packet.
type link struct {
	route *Route
	conn  net.Conn
	// answer is the server's answer so far, for the client: one byte to a
	// request for TLS, the first message to a start-up packet, nothing to a TLS
	// handshake.
	answer []byte
}

// reach has a server take packet. While there is no primary, or it cannot be
// reached, or it says that it is starting up or shutting down, nothing was
// executed: the client waits, up to HoldTimeout, and the packet is sent again.
// spare, if not nil, is tried first. The error is errHoldTimeout, errClientGone,
// ErrServerClosed or a *pgwire.ProtocolError.
func (s *session) reach(packet pgwire.Packet, spare *link) (*link, error) {
	if spare == nil {
		if route, _ := s.server.router.Current(); route != nil {
			spare = &link{route: route}
		}
	}
	if spare != nil { // without the cost of being able to wait
		l, again, err := s.offer(s.server.drain, packet, spare)
		if !again {
			return l, err
		}
		s.server.router.Doubt(spare.route)
	}
	return s.hold(packet)
}

// hold is reach for a client that has to wait.
func (s *session) hold(packet pgwire.Packet) (*link, error) {
	began := time.Now()
	s.server.held.Add(1)
	defer func() {
		s.server.held.Add(-1)
		s.server.metrics.hold.Observe(time.Since(began).Seconds())
	}()
	ctx, cancel := context.WithTimeoutCause(s.server.drain, s.server.opts.HoldTimeout, errHoldTimeout)
	defer cancel()
	ctx, stop := s.whilePresent(ctx)
	defer stop()
	for {
		route, err := s.server.router.Await(ctx)
		if err != nil {
			return nil, err
		}
		l, again, err := s.offer(ctx, packet, &link{route: route})
		if !again {
			return l, err
		}
		s.server.router.Doubt(route)
		select {
		case <-time.After(retryPause):
		case <-s.server.router.changed(route):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// whilePresent returns a context that also ends, with errClientGone, when the
// client does. stop must be called before the client is read again.
func (s *session) whilePresent(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Bytes that come stay in the buffer, which bounds them.
		_, err := s.in.Peek(s.in.Buffered() + 1)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !isTimeout(err) {
			cancel(errClientGone)
		}
	}()
	return ctx, func() {
		s.client.SetReadDeadline(time.Unix(1, 0)) // long past: interrupts the read
		<-done
		s.client.SetReadDeadline(time.Time{})
		cancel(nil)
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// offer has one server take packet: over l's connection, or a new one. again
// says that it executed nothing and that the packet may be sent elsewhere.
func (s *session) offer(ctx context.Context, packet pgwire.Packet, l *link) (_ *link, again bool, _ error) {
	if l.conn == nil {
		dialCtx, cancel := context.WithTimeout(ctx, s.server.opts.ConnectTimeout)
		stop := context.AfterFunc(l.route.Context(), cancel)
		conn, err := s.server.opts.Dial(dialCtx, l.route.Addr)
		stop()
		cancel()
		if err != nil {
			return s.failed(ctx)
		}
		l.conn = conn
	}
	keep := false
	defer func() {
		if !keep {
			l.conn.Close()
		}
	}()
	// A server that is given up meanwhile, or a client that leaves, ends this.
	defer context.AfterFunc(ctx, func() { l.conn.SetDeadline(time.Unix(1, 0)) })()
	defer context.AfterFunc(l.route.Context(), func() { l.conn.SetDeadline(time.Unix(1, 0)) })()
	l.conn.SetDeadline(time.Now().Add(s.server.opts.StartupTimeout))

	answer, err := exchange(l.conn, packet)
	var p *pgwire.ProtocolError
	if errors.As(err, &p) {
		return nil, false, err
	}
	if err != nil || l.route.Context().Err() != nil || busy(answer) {
		return s.failed(ctx)
	}
	l.conn.SetDeadline(time.Time{})
	l.answer, keep = answer, true
	return l, false, nil
}

// failed is the result of an offer that was not taken.
func (s *session) failed(ctx context.Context) (*link, bool, error) {
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	return nil, true, nil
}

// exchange sends packet to a server and reads the first answer.
func exchange(conn net.Conn, packet pgwire.Packet) ([]byte, error) {
	if packet.Kind == pgwire.KindDirectTLS {
		return nil, nil // the handshake is still in the session's buffer
	}
	if _, err := conn.Write(packet.Raw); err != nil {
		return nil, err
	}
	if packet.Kind == pgwire.KindSSL {
		var answer [1]byte
		_, err := conn.Read(answer[:])
		return answer[:], err
	}
	_, raw, err := pgwire.ReadMessage(conn)
	return raw, err
}

// busy reports whether an answer says that the server cannot take sessions now:
// cannot_connect_now (starting up, shutting down) or admin_shutdown.
func busy(answer []byte) bool {
	code := pgwire.SQLState(answer)
	return code == "57P03" || code == "57P01"
}

package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"pgfailproxy/pgwire"
)

// reach has a server take packet. While there is no primary, or it cannot be
// reached, or it says that it is starting up or shutting down, nothing was
// executed: the client waits, up to HoldTimeout since it first did, and the packet
// is sent again. spare, if not nil, is tried first. The error is errHoldTimeout,
// errClientGone, ErrServerClosed or a *pgwire.ProtocolError.
func (s *session) reach(packet pgwire.Packet, spare *link) (*link, error) {
	began := time.Now()
	defer func() { s.patience -= time.Since(began) }()
	ctx, cancel := context.WithTimeoutCause(s.server.drain, s.patience, errHoldTimeout)
	defer cancel()
	if spare == nil {
		if route, _ := s.server.router.Current(); route != nil {
			spare = &link{route: route}
		}
	}
	if spare != nil { // without the cost of being able to wait
		l, again, err := s.offer(ctx, packet, spare)
		if !again {
			return l, err
		}
	}
	return s.hold(ctx, packet)
}

// hold is reach for a client that has to wait.
func (s *session) hold(ctx context.Context, packet pgwire.Packet) (*link, error) {
	began := time.Now()
	s.server.held.Add(1)
	s.become(StateHeld)
	defer func() {
		s.server.held.Add(-1)
		s.become(StateStartup)
		s.server.metrics.hold.Observe(time.Since(began).Seconds())
	}()
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
		// Bytes that come stay in the buffer, which bounds them; when it is full
		// we can no longer see the client leave.
		var err error
		for err == nil {
			_, err = s.in.Peek(s.in.Buffered() + 1)
		}
		if !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel(errClientGone)
		}
	}()
	return ctx, func() {
		s.client.SetReadDeadline(longPast)
		<-done
		s.client.SetReadDeadline(time.Time{})
		cancel(nil)
	}
}

// longPast is a deadline that interrupts what is being read or written.
var longPast = time.Unix(1, 0)

// offer has one server take packet: over l's connection, or a new one. It owns
// that connection until it returns it. again says that nothing was executed and
// that the packet may be sent elsewhere; the router knows then.
func (s *session) offer(ctx context.Context, packet pgwire.Packet, l *link) (_ *link, again bool, _ error) {
	// A server that is given up meanwhile, or a client that leaves, ends this.
	try, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.route.Context(), func() { cancel(context.Cause(l.route.Context())) })()

	err := s.send(try, packet, l)
	if err == nil {
		return l, false, nil
	}
	if l.conn != nil {
		l.conn.Close()
	}
	var p *pgwire.ProtocolError
	switch {
	case ctx.Err() != nil:
		return nil, false, context.Cause(ctx)
	case errors.As(err, &p):
		return nil, false, err
	}
	s.debug("server did not take the session", "member", l.route.Member, "cause", err)
	s.server.metrics.retries.Inc()
	s.server.router.Doubt(l.route)
	return nil, true, nil
}

// send connects l if it is not, sends packet and reads the answer. Not a byte is
// sent to a member that was given up.
func (s *session) send(ctx context.Context, packet pgwire.Packet, l *link) (err error) {
	if l.conn == nil {
		dial, cancel := context.WithTimeout(ctx, s.server.opts.ConnectTimeout)
		defer cancel()
		if err := s.server.connect(dial, l, !s.server.opts.Passthrough); err != nil {
			return err
		}
	}
	if err := l.route.Context().Err(); err != nil {
		return err
	}
	l.conn.SetDeadline(time.Now().Add(s.server.opts.LoginTimeout))
	stop := context.AfterFunc(ctx, func() { l.conn.SetDeadline(longPast) })
	l.answer, err = exchange(l.conn, packet)
	if !stop() {
		return context.Cause(ctx) // the deadline may still strike
	}
	if err != nil {
		return err
	}
	if code := pgwire.SQLState(l.answer); busy(code) {
		return fmt.Errorf("%s (SQLSTATE %s)", pgwire.ErrorText(l.answer), code)
	}
	l.conn.SetDeadline(time.Time{})
	return nil
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

// busy reports whether a server that answers with code cannot take sessions now:
// cannot_connect_now (starting up, shutting down) or admin_shutdown. Within TLS
// it says so unseen by us: a client that asks for TLS in the moment between a
// server's decision to stop and the route's suspension is told.
func busy(code string) bool { return code == "57P03" || code == "57P01" }

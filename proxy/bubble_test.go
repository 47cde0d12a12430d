package proxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/prometheus/client_golang/prometheus"

	"pgfailproxy/cluster"
	"pgfailproxy/internal/memnet"
	"pgfailproxy/pgwire"
)

// bubble is a server, its clients and two members, in virtual time.
type bubble struct {
	t       *testing.T
	net     *memnet.Network
	router  *Router
	server  *Server
	rec     cluster.Record
	doubts  chan string
	metrics *prometheus.Registry
	log     logBuffer
	answer  map[string]func(net.Conn) // how each member takes a session
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var bubbleOptions = Options{HoldTimeout: 30 * time.Second, LoginTimeout: 10 * time.Second, ConnectTimeout: 5 * time.Second, Passthrough: true}

// inBubble runs a test with a server that knows pg1 to be the primary, but has
// not verified it. Sessions are not followed: see inFollowed.
func inBubble(t *testing.T, change func(*Options, *RouterOptions), test func(b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{t: t, net: &memnet.Network{}, metrics: prometheus.NewRegistry(), doubts: make(chan string, 1000), answer: map[string]func(net.Conn){}}
		opts, ropts := bubbleOptions, RouterOptions{OnDoubt: func(m string) { b.doubts <- m }}
		opts.Dial = func(ctx context.Context, a cluster.Addr) (net.Conn, error) { return b.net.Dial(ctx, a.Address) }
		if change != nil {
			change(&opts, &ropts)
		}
		ropts.Log = slog.New(slog.NewTextHandler(&b.log, nil))
		b.router = NewRouter(ropts)
		b.server = New(b.router, opts, ropts.Log, b.metrics)
		front := b.listen("proxy")
		served := make(chan error, 1)
		go func() { served <- b.server.Serve(front) }()
		var members []net.Listener
		for _, name := range []string{"pg1", "pg2"} {
			ln := b.listen(name)
			members = append(members, ln)
			b.answer[name] = echo
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					go b.answer[name](c)
				}
			}()
		}
		b.rec = cluster.Record{Revision: 1, Epoch: 1, System: 7, Timeline: 1, Primary: "pg1"}
		b.router.Apply(b.rec)
		defer func() { // also when the test failed: a bubble must be left empty
			b.server.Close()
			if err := <-served; !errors.Is(err, ErrServerClosed) {
				t.Errorf("Serve returned %v, want ErrServerClosed", err)
			}
			for _, ln := range members {
				ln.Close()
			}
			synctest.Wait()
			if s := b.server.Stats(); s.Open != 0 || s.Held != 0 {
				t.Errorf("after Close: %+v", s)
			}
		}()
		test(b)
	})
}

func (b *bubble) listen(name string) net.Listener {
	ln, err := b.net.Listen(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return ln
}

// verify opens the route to the record's primary.
func (b *bubble) verify() {
	b.router.Open(b.rec.Epoch, cluster.Addr{Network: "mem", Address: b.rec.Primary})
}

// giveUp holds the record; succeed makes pg2 the primary.
func (b *bubble) giveUp() {
	b.rec.Revision++
	b.rec.Epoch++
	b.rec.Held = true
	b.router.Apply(b.rec)
}

func (b *bubble) succeed() {
	b.rec.Revision++
	b.rec.Held, b.rec.Primary, b.rec.Timeline = false, "pg2", 2
	b.router.Apply(b.rec)
	b.verify()
}

// echo takes a session like a server without passwords, then echoes bytes.
func echo(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	p, err := pgwire.ReadPacket(r)
	if err == nil && p.Kind == pgwire.KindSSL {
		c.Write([]byte{'N'})
		p, err = pgwire.ReadPacket(r)
	}
	if err != nil || p.Kind != pgwire.KindStartup {
		return
	}
	c.Write(authOK)
	io.Copy(c, r)
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
}

var authOK = []byte{'R', 0, 0, 0, 8, 0, 0, 0, 0}

// refuseWith answers a start-up packet with an error, as a server does.
func refuseWith(code, text string) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		if _, err := pgwire.ReadPacket(bufio.NewReader(c)); err != nil {
			return
		}
		m, _ := pgwire.Fatal(pgwire.Error{Code: code, Message: text})
		c.Write(m)
	}
}

// client is one that dialled the proxy.
type client struct {
	net.Conn
	t *testing.T
}

func (b *bubble) dial() *client {
	b.t.Helper()
	c, err := b.net.Dial(context.Background(), "proxy")
	if err != nil {
		b.t.Fatal(err)
	}
	return &client{c, b.t}
}

// connect dials and sends a start-up packet.
func (b *bubble) connect() *client {
	b.t.Helper()
	c := b.dial()
	c.send(startupPacket("alice"))
	return c
}

func startupPacket(user string) []byte {
	p, err := (&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": user}}).Encode(nil)
	if err != nil {
		panic(err)
	}
	return p
}

func requestPacket(code uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code)
}

const sslRequest, gssRequest = 80877103, 80877104

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) want(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		c.t.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

// wantServed expects the session to have begun, and to echo.
func (c *client) wantServed() {
	c.t.Helper()
	c.want(string(authOK))
	c.send([]byte("ping"))
	c.want("ping")
}

// wantFatal expects an error of that code that mentions text, and the end.
func (c *client) wantFatal(code, text string) {
	c.t.Helper()
	all, err := io.ReadAll(c)
	if err != nil || pgwire.SQLState(all) != code || !strings.Contains(string(all), text) {
		c.t.Fatalf("read %q, %v, want SQLSTATE %s and %q", all, err, code, text)
	}
	c.Close()
}

func (c *client) wantEnd() {
	c.t.Helper()
	if b, err := io.ReadAll(c); len(b) > 0 || err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.Fatalf("read %q, %v, want the end", b, err)
	}
}

package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pgfailproxy/cluster"
	"pgfailproxy/internal/tcp"
	"pgfailproxy/pgwire"
)

// onLoopback starts a server on real sockets before a member that takes sessions
// with answer, and returns the address for clients.
func onLoopback(t *testing.T, answer func(net.Conn)) (addr string, server *Server) {
	t.Helper()
	member, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := member.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { answer(c) })
		}
	})
	router := NewRouter(RouterOptions{})
	router.Apply(cluster.Record{Revision: 1, Epoch: 1, Primary: "pg1"})
	router.Open(1, cluster.Addr{Network: "tcp", Address: member.Addr().String()})
	opts := bubbleOptions
	opts.TCP = tcp.Options{KeepAlive: 10 * time.Second, UserTimeout: 30 * time.Second}
	server = New(router, opts, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	wg.Go(func() { server.Serve(front) })
	t.Cleanup(func() {
		server.Close()
		member.Close()
		wg.Wait()
	})
	return front.Addr().String(), server
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("descriptors cannot be counted here: %v", err)
	}
	return len(all)
}

// eventually waits for a condition that must come true, and fails with what was
// last seen.
func eventually(t *testing.T, what string, cond func() (string, bool)) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		last, ok := cond()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", what, last)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A thousand sessions at a time, twice: what they took is given back.
func TestAThousandConnectionsLeaveNothingBehind(t *testing.T) {
	addr, server := onLoopback(t, echo)
	round := func() {
		var clients []net.Conn
		for range 1000 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
			if _, err := c.Write(startupPacket("alice")); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range clients {
			served := &client{c, t}
			served.wantServed()
		}
		if got := server.Stats().Open; got != 1000 {
			t.Errorf("%d open, want 1000", got)
		}
		for i, c := range clients {
			if i%2 == 0 {
				c.(*net.TCPConn).SetLinger(0) // as one that is killed
			}
			c.Close()
		}
		eventually(t, "sessions end", func() (string, bool) { n := server.Stats().Open; return fmt.Sprint(n, " open"), n == 0 })
	}
	round() // what is kept on purpose, such as buffers, is there after this
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	var before, after runtime.MemStats
	collect := func(m *runtime.MemStats) {
		runtime.GC() // a pool gives up its buffers in two steps
		runtime.GC()
		runtime.ReadMemStats(m)
	}
	collect(&before)
	round()
	eventually(t, "goroutines", func() (string, bool) {
		n := runtime.NumGoroutine()
		return fmt.Sprintf("%d, before %d", n, goroutines), n <= goroutines+5
	})
	eventually(t, "descriptors", func() (string, bool) {
		n := descriptors(t)
		return fmt.Sprintf("%d, before %d", n, files), n <= files+5
	})
	collect(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 2<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// certificate returns one for localhost, and what trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TLS is between the client and the server: the proxy has no key and sees
// nothing of it. Both ways to begin it go through.
func TestTLSGoesThroughEndToEnd(t *testing.T) {
	cert, pool := certificate(t)
	addr, _ := onLoopback(t, func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		p, err := pgwire.ReadPacket(r)
		if err != nil {
			return
		}
		if p.Kind == pgwire.KindSSL {
			c.Write([]byte{'S'})
		}
		secure := tls.Server(bufferedConn{c, r}, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"postgresql"}})
		echo(secure)
	})
	for _, direct := range []bool{false, true} {
		raw, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if !direct {
			c := &client{raw, t}
			c.send(requestPacket(sslRequest))
			c.want("S")
		}
		secure := tls.Client(raw, &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"postgresql"}})
		if err := secure.Handshake(); err != nil {
			t.Fatalf("direct %v: %v", direct, err)
		}
		c := &client{secure, t}
		c.send(startupPacket("alice"))
		c.wantServed()
		secure.Close()
	}
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// A failover in the middle of a transfer ends it on both sides at once, however
// full the buffers are.
func TestAFailoverEndsABusySession(t *testing.T) {
	ended := make(chan error, 1)
	addr, server := onLoopback(t, func(c net.Conn) {
		defer c.Close()
		pgwire.ReadPacket(bufio.NewReader(c))
		c.Write(authOK)
		for {
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				ended <- err
				return
			}
		}
	})
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := &client{raw, t}
	c.send(startupPacket("alice"))
	c.want(string(authOK))
	eventually(t, "buffers fill", func() (string, bool) { _, n := server.mover.Moved(); return fmt.Sprint(n), n > 1<<20 })
	server.router.Apply(cluster.Record{Revision: 2, Epoch: 2, Primary: "pg1", Held: true})
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the server side was not ended")
	}
	raw.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, raw); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the client side was not ended")
	}
}

func TestShutdownWhileAcceptingIsClean(t *testing.T) {
	addr, server := onLoopback(t, echo)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if c, err := net.Dial("tcp", addr); err == nil {
				c.Write(startupPacket("alice"))
				io.Copy(io.Discard, c)
				c.Close()
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	wg.Wait()
	if got := server.Stats().Open; got != 0 {
		t.Errorf("%d open", got)
	}
}

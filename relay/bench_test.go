package relay

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
)

// tcpPair returns both ends of a connection on loopback.
func tcpPair(tb testing.TB) (near, far net.Conn) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	near, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	far, err = ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func BenchmarkRoundTrip(b *testing.B) {
	client, a := tcpPair(b)
	server, s := tcpPair(b)
	var counts Counts
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { Run(context.Background(), a, s, &counts) })
	wg.Go(func() { io.Copy(server, server); server.Close() })
	defer client.Close()
	msg := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Write(msg); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, msg); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBulk is one direction of a COPY, in rows of 100 bytes written 8 KiB
// at a time, as a server does.
func BenchmarkBulk(b *testing.B) {
	client, a := tcpPair(b)
	server, s := tcpPair(b)
	var counts Counts
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { Run(context.Background(), a, s, &counts) })
	wg.Go(func() { io.Copy(io.Discard, client) })
	defer client.Close()
	defer server.Close()
	msg := make([]byte, 8<<10)
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		if _, err := server.Write(msg); err != nil {
			b.Fatal(err)
		}
	}
}

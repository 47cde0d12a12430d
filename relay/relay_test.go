package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var soak = flag.Duration("soak", 2*time.Second, "how long each mover is soaked")

// movers are the ways in which a pair is carried. The tests are the same.
var movers = map[string]func(net.Conn) net.Conn{
	"loop":  func(c net.Conn) net.Conn { return c },
	"pumps": func(c net.Conn) net.Conn { return hidden{c.(*net.TCPConn)} },
	"pumps without raw reads": func(c net.Conn) net.Conn {
		return opaque{c, c.(*net.TCPConn)}
	},
}

// hidden is a TCP connection that is not seen to be one.
type hidden struct{ *net.TCPConn }

// opaque can only be read and written, like TLS.
type opaque struct {
	net.Conn
	tcp *net.TCPConn
}

func (o opaque) CloseWrite() error { return o.tcp.CloseWrite() }
func (o opaque) NetConn() net.Conn { return o.tcp }

// eachMover runs a test with every mover.
func eachMover(t *testing.T, test func(t *testing.T, w *world)) {
	for name, wrap := range movers {
		t.Run(name, func(t *testing.T) {
			m := NewMover(2)
			defer m.Close()
			test(t, &world{t, m, wrap})
		})
	}
}

type world struct {
	*testing.T
	mover *Mover
	wrap  func(net.Conn) net.Conn
}

// ends are the far ends of a pair: what the client and the server hold.
type ends struct {
	a, b *net.TCPConn
	flow *Flow
	done chan Result
	pair Pair
}

func tcpPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// open makes a pair that is not moved yet.
func (w *world) open() *ends {
	w.Helper()
	e := &ends{done: make(chan Result, 1)}
	var a, b *net.TCPConn
	a, e.a = tcpPair(w)
	b, e.b = tcpPair(w)
	e.pair = Pair{Conn: [2]net.Conn{w.wrap(a), w.wrap(b)}}
	w.Cleanup(func() { e.a.Close(); e.b.Close() })
	return e
}

func (w *world) start(e *ends, watcher Watcher) {
	e.flow = w.mover.Start(e.pair, watcher, func(r Result) {
		for s, c := range r.Conn { // as it would be handed back
			if t, ok := c.(*net.TCPConn); ok {
				r.Conn[s] = w.wrap(t)
			}
		}
		e.done <- r
	})
}

func (w *world) result(e *ends) Result {
	w.Helper()
	select {
	case r := <-e.done:
		return r
	case <-time.After(20 * time.Second):
		w.Fatal("the pair is not handed back")
		panic("")
	}
}

func closeAll(r Result) {
	for _, c := range r.Conn {
		if c != nil {
			c.Close()
		}
	}
}

// chopper passes what it likes, and keeps the rest, as a watcher of messages
// does. It is not to be called concurrently, and looks that it is not.
type chopper struct {
	rnd    *rand.Rand
	called atomic.Int32
	seen   [2]int64
	ended  [2]bool
	refuse bool // ends are not passed on
	stopAt int64
}

func (c *chopper) Arrived(from Side, p []byte) (v Verdict) {
	if !c.called.CompareAndSwap(0, 1) {
		panic("called concurrently")
	}
	defer c.called.Store(0)
	v.Pass = len(p)
	if c.rnd != nil && len(p) < MaxKept && c.rnd.IntN(3) == 0 {
		v.Pass = c.rnd.IntN(len(p)) + len(p)%2 // now and then all
		v.Pass = min(v.Pass, len(p))
	}
	if c.rnd != nil && v.Pass == len(p) && c.rnd.IntN(4) == 0 {
		v.Unseen = int64(c.rnd.IntN(300_000))
	}
	c.seen[from] += int64(v.Pass)
	if c.stopAt > 0 && c.seen[from] >= c.stopAt {
		v.Stop = true
	}
	return v
}

func (c *chopper) Ended(from Side) bool {
	c.ended[from] = true
	return !c.refuse
}

// stream sends n bytes in random pieces and then ends, and says what it sent.
func stream(c *net.TCPConn, n int, seed uint64) [32]byte {
	r := rand.New(rand.NewPCG(seed, 1))
	h := sha256.New()
	for n > 0 {
		p := make([]byte, min(n, 1+r.IntN(1<<r.IntN(19))))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		h.Write(p)
		if _, err := c.Write(p); err != nil {
			break
		}
		n -= len(p)
		if r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		}
	}
	c.CloseWrite()
	return [32]byte(h.Sum(nil))
}

func sink(c *net.TCPConn, seed uint64) [32]byte {
	r := rand.New(rand.NewPCG(seed, 2))
	h := sha256.New()
	buf := make([]byte, 1<<18)
	for {
		n, err := c.Read(buf[:1+r.IntN(len(buf))])
		h.Write(buf[:n])
		if err != nil {
			return [32]byte(h.Sum(nil))
		}
		if r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		}
	}
}

// exchange streams both ways while the pair is stopped and started again at any
// time, and compares what was sent with what arrived.
func (w *world) exchange(seed uint64, size int, stops bool) {
	w.Helper()
	e := w.open()
	var sent, got [2][32]byte
	var wg sync.WaitGroup
	for s, c := range []*net.TCPConn{e.a, e.b} {
		wg.Go(func() { sent[s] = stream(c, size, seed+uint64(s)) })
		wg.Go(func() { got[s] = sink(c, seed+uint64(s)) })
	}
	r := rand.New(rand.NewPCG(seed, 3))
	watcher := &chopper{rnd: rand.New(rand.NewPCG(seed, 4))}
	var moved [2]int64
	for {
		w.start(e, watcher)
		if stops {
			time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
			e.flow.Stop()
		}
		res := w.result(e)
		for s := range moved {
			moved[s] += res.Moved[s]
		}
		if res.Reason == Finished {
			closeAll(res)
			break
		}
		if res.Reason != Stopped {
			w.Fatalf("seed %d: %s of %s: %v", seed, res.Reason, res.From, res.Err)
		}
		for s := range Side(2) {
			if len(res.Kept[s]) > MaxKept+chunk || res.Unseen[s] > 0 && !res.Ended[s] {
				w.Fatalf("seed %d: stopped in the middle: %d kept, %d unseen", seed, len(res.Kept[s]), res.Unseen[s])
			}
		}
		e.pair = res.Pair
	}
	wg.Wait()
	if sent[0] != got[1] || sent[1] != got[0] {
		w.Fatalf("seed %d: what arrived is not what was sent", seed)
	}
	if moved != [2]int64{int64(size), int64(size)} {
		w.Fatalf("seed %d: %d bytes moved, want %d each way", seed, moved, size)
	}
}

func TestNotAByteIsLostDoubledOrReordered(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		for seed := range uint64(6) {
			w.exchange(seed, 2<<20, false)
		}
	})
}

func TestAPairThatIsStoppedAnywhereGoesOnAsIfItHadNot(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		for seed := range uint64(6) {
			w.exchange(seed, 1<<20, true)
		}
	})
}

// For ten minutes: -soak=10m.
func TestSoak(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		until := time.Now().Add(*soak)
		for seed := uint64(time.Now().UnixNano()); time.Now().Before(until); seed += 100 {
			var wg sync.WaitGroup
			for k := range uint64(8) {
				wg.Go(func() { w.exchange(seed+k, 1<<19, k%2 == 0) })
			}
			wg.Wait()
		}
	})
}

func TestAnEndOfOneSideLeavesTheOther(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		for _, watcher := range []Watcher{nil, &chopper{}} {
			e := w.open()
			w.start(e, watcher)
			fmt.Fprint(e.a, "question")
			e.a.CloseWrite()
			if all, err := io.ReadAll(e.b); string(all) != "question" || err != nil {
				t.Fatalf("%q, %v", all, err)
			}
			fmt.Fprint(e.b, "answer")
			e.b.Close()
			if all, err := io.ReadAll(e.a); string(all) != "answer" || err != nil {
				t.Fatalf("%q, %v", all, err)
			}
			r := w.result(e)
			if r.Reason != Finished || r.Moved != [2]int64{8, 6} {
				t.Errorf("%+v", r)
			}
			closeAll(r)
		}
	})
}

func TestAnEndThatIsNotPassedOnHandsThePairBack(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		e := w.open()
		w.start(e, &chopper{refuse: true})
		fmt.Fprint(e.b, "last words")
		e.b.Close()
		r := w.result(e)
		if r.Reason != Stopped || r.From != B || !r.Ended[B] {
			t.Errorf("%s of %s", r.Reason, r.From)
		}
		fmt.Fprint(r.Conn[A], "!")
		closeAll(r)
		if all, err := io.ReadAll(e.a); string(all) != "last words!" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
	})
}

func TestAVerdictStopsThePairBehindWhatItPassed(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		e := w.open()
		w.start(e, watchFunc(func(from Side, p []byte) Verdict {
			if i := bytes.IndexByte(p, '!'); i >= 0 {
				return Verdict{Pass: i, Stop: true}
			}
			return Verdict{Pass: len(p)}
		}))
		fmt.Fprint(e.b, "rows!fatal")
		r := w.result(e)
		if r.Reason != Stopped || string(r.Kept[B]) != "!fatal" || len(r.Unwritten[B]) != 0 {
			t.Errorf("%s, kept %q", r.Reason, r.Kept[B])
		}
		closeAll(r)
		if all, err := io.ReadAll(e.a); string(all) != "rows" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
	})
}

type watchFunc func(Side, []byte) Verdict

func (w watchFunc) Arrived(from Side, p []byte) Verdict { return w(from, p) }
func (w watchFunc) Ended(Side) bool                     { return true }

func TestAfterACutTheServerGetsNothingAndTheClientIsThere(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		e := w.open()
		w.start(e, &chopper{})
		fmt.Fprint(e.a, "before")
		if _, err := io.ReadFull(e.b, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		e.flow.Cut()
		fmt.Fprint(e.a, "after")
		r := w.result(e)
		if r.Reason != WasCut || r.Conn[B] != nil || r.Moved[A] != 6 {
			t.Fatalf("%s, %v, %d moved", r.Reason, r.Conn[B], r.Moved[A])
		}
		if n, err := e.b.Read(make([]byte, 10)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server reads %d bytes, %v; want a reset", n, err)
		}
		fmt.Fprint(r.Conn[A], "farewell")
		for want, c := range map[string]net.Conn{"farewell": e.a, "after": r.Conn[A]} {
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
		closeAll(r)
	})
}

// What the server has not taken when it is given up must not reach it later.
func TestACutThrowsAwayWhatWaitsToBeSent(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		e := w.open()
		w.start(e, nil)
		e.a.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		e.a.Write(make([]byte, 64<<20)) // until nobody takes more
		e.flow.Cut()
		r := w.result(e)
		closeAll(r)
		_, err := io.Copy(io.Discard, e.b)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
	})
}

func TestASlowReaderHoldsBackItsWriterOnly(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		slow, quick := w.open(), w.open()
		w.start(slow, nil)
		w.start(quick, nil)
		slow.b.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := slow.b.Write(make([]byte, 64<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d bytes taken, %v", n, err)
		}
		for range 100 {
			fmt.Fprint(quick.a, "ping")
			if _, err := io.ReadFull(quick.b, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(slow.a, "ping") // its other direction goes on
			if _, err := io.ReadFull(slow.b, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
		}
		if m, err := io.CopyN(io.Discard, slow.a, int64(n)); err != nil {
			t.Errorf("%d of %d bytes, %v", m, n, err)
		}
		for _, e := range []*ends{slow, quick} {
			e.flow.Cut()
			closeAll(w.result(e))
		}
	})
}

func TestAResetOfOneSideIsAFailureOfThatSide(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		for s := range Side(2) {
			e := w.open()
			w.start(e, &chopper{})
			c := []*net.TCPConn{e.a, e.b}[s]
			c.SetLinger(0)
			c.Close()
			r := w.result(e)
			if r.Reason != Failed || r.From != s || r.Err == nil {
				t.Errorf("%s of %s: %v", r.Reason, r.From, r.Err)
			}
			closeAll(r)
		}
	})
}

// A bulk transfer and a small query on one loop take turns.
func TestABulkTransferLetsSmallOnesThrough(t *testing.T) {
	w := &world{t, NewMover(1), movers["loop"]}
	defer w.mover.Close()
	var bulkReads atomic.Int64
	bulk, small := w.open(), w.open()
	w.start(bulk, watchFunc(func(_ Side, p []byte) Verdict { bulkReads.Add(1); return Verdict{Pass: len(p)} }))
	w.start(small, nil)
	go io.Copy(io.Discard, bulk.b)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		p := make([]byte, 1<<20)
		for {
			select {
			case <-stop:
				return
			default:
				bulk.a.Write(p)
			}
		}
	})
	for bulkReads.Load() < 100 {
		runtime.Gosched()
	}
	var waited []int64
	for range 200 {
		before := bulkReads.Load()
		fmt.Fprint(small.a, "ping")
		if _, err := io.ReadFull(small.b, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		waited = append(waited, bulkReads.Load()-before)
	}
	// The most depends on when this goroutine is let run, too.
	slices.Sort(waited)
	median := waited[len(waited)/2]
	t.Logf("reads of the bulk transfer while a small one went through: %d in the median, at most %d", median, waited[len(waited)-1])
	if median > 200 { // and not all that there is
		t.Errorf("a small one waited for %d reads", median)
	}
	close(stop)
	for _, e := range []*ends{bulk, small} {
		e.flow.Cut()
		closeAll(w.result(e))
	}
	wg.Wait()
}

func TestManyPairsLeaveNothingBehind(t *testing.T) {
	eachMover(t, func(t *testing.T, w *world) {
		before := descriptors(t)
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				e := w.open()
				w.start(e, &chopper{})
				fmt.Fprint(e.a, "ping")
				io.ReadFull(e.b, make([]byte, 4))
				e.flow.Inspect(func() {})
				switch i % 3 {
				case 0:
					e.flow.Cut()
				case 1:
					e.flow.Stop()
				default:
					e.a.Close()
					e.b.Close()
				}
				closeAll(w.result(e))
				e.a.Close()
				e.b.Close()
			})
		}
		wg.Wait()
		if after := descriptors(t); after > before+4 { // the loops' own
			t.Errorf("%d descriptors, before %d", after, before)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("descriptors cannot be counted here: %v", err)
	}
	return len(all)
}

// A message costs no memory.
func BenchmarkPingPong(b *testing.B) {
	for name, wrap := range movers {
		b.Run(name, func(b *testing.B) {
			m := NewMover(0)
			defer m.Close()
			a, client := tcpPair(b)
			s, server := tcpPair(b)
			done := make(chan Result, 1)
			f := m.Start(Pair{Conn: [2]net.Conn{wrap(a), wrap(s)}}, &chopper{}, func(r Result) { done <- r })
			buf := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				client.Write(buf)
				io.ReadFull(server, buf)
				server.Write(buf)
				io.ReadFull(client, buf)
			}
			f.Cut()
			closeAll(<-done)
			client.Close()
			server.Close()
		})
	}
}

func TestAMessageCostsNoMemory(t *testing.T) {
	// Pumps take their buffer from a pool, which the race detector has forget a
	// part of what is put back.
	for name, most := range map[string]float64{"loop": 0, "pumps": 1} {
		t.Run(name, func(t *testing.T) {
			w := &world{t, NewMover(1), movers[name]}
			defer w.mover.Close()
			e := w.open()
			w.start(e, &chopper{})
			buf := make([]byte, 64)
			n := testing.AllocsPerRun(500, func() {
				e.a.Write(buf)
				io.ReadFull(e.b, buf)
				e.b.Write(buf)
				io.ReadFull(e.a, buf)
			})
			if n > most {
				t.Errorf("%v allocations for a message and its answer", n)
			}
			e.flow.Cut()
			closeAll(w.result(e))
		})
	}
}

package relay

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// batch is how many events are taken at once.
const batch = 128

// bellEvent is in the place of a seat.
const bellEvent = -1

// loop moves many pairs of plain sockets with one goroutine, which blocks in an
// epoll instance of its own. The runtime does not know of the sockets: it would
// wake for each arrival to find the goroutine that waits for it.
//
// Blocking in the system call, rather than in the runtime's poller, is what makes
// a message cheap: the goroutine keeps its processor while it waits for some
// milliseconds. Parked, it gives that up, and with no processor busy the runtime
// puts its monitor to sleep and has to wake it with the next message: measured, a
// third of all that a small query costs.
//
// Events are level-triggered, and each is answered with one read of a chunk at
// most: a bulk transfer and a small query take turns.
type loop struct {
	fd   int // the epoll instance
	bell int // an event of which ends the loop
	done chan struct{}

	mu    sync.Mutex // guards what follows, and all flows of the loop
	seats []seat
	free  []int32 // of seats
	buf   buffer  // what is being read; nothing is in it between two events
}

// seat is a place for a pair. An event that was under way when it got another
// pair has another number.
type seat struct {
	pair   *looped
	number int32
}

// looped carries a flow in a loop.
type looped struct {
	flow *Flow
	loop *loop
	seat int32
	fd   [2]int    // -1: closed
	want [2]uint32 // as registered; 0: not registered
}

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	l := &loop{fd: fd, bell: bell, done: make(chan struct{})}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, bell, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: bellEvent}); err != nil {
		l.release()
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	go l.run()
	return l, nil
}

func (l *loop) release() {
	unix.Close(l.fd)
	unix.Close(l.bell)
}

func (l *loop) close() {
	unix.Write(l.bell, []byte{7: 1}) // cannot fail: nobody else counts it up
	<-l.done
	l.release()
}

// run answers events until the loop is closed.
func (l *loop) run() {
	defer close(l.done)
	var events [batch]unix.EpollEvent
	for {
		n, err := unix.EpollWait(l.fd, events[:], -1)
		if err != nil && err != unix.EINTR {
			panic(os.NewSyscallError("epoll_wait", err)) // the descriptor is ours
		}
		l.mu.Lock()
		for i := range events[:max(n, 0)] {
			if events[i].Fd == bellEvent {
				l.mu.Unlock()
				return
			}
			l.answer(&events[i])
		}
		l.mu.Unlock()
	}
}

func (l *loop) answer(e *unix.EpollEvent) {
	s := &l.seats[e.Fd>>1]
	if s.pair == nil || s.number != e.Pad {
		return // it left meanwhile
	}
	s.pair.answer(Side(e.Fd&1), e.Events)
}

// start takes a pair in.
func (l *loop) start(f *Flow, p Pair, fds [2]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &looped{flow: f, loop: l, fd: fds}
	f.carrier, f.mu = c, &l.mu
	if n := len(l.free); n > 0 {
		c.seat, l.free = l.free[n-1], l.free[:n-1]
	} else {
		c.seat = int32(len(l.seats))
		l.seats = append(l.seats, seat{})
	}
	l.seats[c.seat].pair = c
	f.begin(p)
	c.flush(A)
	c.flush(B)
	c.changed()
}

// answer does what an event of a side allows.
func (c *looped) answer(s Side, events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.flush(s.Other())
	}
	if events&^unix.EPOLLOUT != 0 && c.flow.reads(s) {
		c.read(s)
	}
	c.changed()
}

// read reads once and writes what may go on.
func (c *looped) read(from Side) {
	buf := &c.loop.buf
	k := copy(buf[:], c.flow.ways[from].kept)
	n, err := read(c.fd[from], buf[k:k+chunk])
	switch {
	case err == unix.EAGAIN:
	case err != nil:
		c.flow.ended(from, opError("read", err))
	case n == 0:
		c.flow.ended(from, nil)
	default:
		if p := c.flow.take(from, buf[:k+n]); len(p) > 0 {
			c.write(from, p)
		}
	}
}

// flush writes what waits to be written of a direction.
func (c *looped) flush(from Side) {
	if c.flow.writes(from.Other()) {
		c.write(from, c.flow.ways[from].unwritten)
	}
}

func (c *looped) write(from Side, p []byte) {
	n, err := write(c.fd[from.Other()], p)
	switch {
	case err == unix.EAGAIN:
		err = nil
	case err != nil:
		err = opError("write", err)
	}
	c.flow.wrote(from, p, n, err)
}

// changed passes ends on, and has the kernel watch for what the flow wants. When
// the flow is over the pair leaves.
func (c *looped) changed() {
	f := c.flow
	for s := range Side(2) {
		if f.passesEnd(s) {
			err := unix.Shutdown(c.fd[s.Other()], unix.SHUT_WR)
			if err == unix.ENOTCONN {
				err = nil // it is gone altogether, and its own direction says so
			}
			f.passed(s, err)
		}
	}
	if f.over {
		c.leave()
		return
	}
	for s := range Side(2) {
		var want uint32
		if f.reads(s) {
			want |= unix.EPOLLIN | unix.EPOLLRDHUP
		}
		if f.writes(s) {
			want |= unix.EPOLLOUT
		}
		c.watch(s, want)
	}
}

// watch registers a side for events. What is not wanted at all is not
// registered: a connection that has ended would be reported without end.
func (c *looped) watch(s Side, want uint32) {
	had := c.want[s]
	if had == want {
		return
	}
	op := unix.EPOLL_CTL_MOD
	switch {
	case had == 0:
		op = unix.EPOLL_CTL_ADD
	case want == 0:
		op = unix.EPOLL_CTL_DEL
	}
	c.want[s] = want
	e := unix.EpollEvent{Events: want, Fd: c.seat<<1 | int32(s), Pad: c.loop.seats[c.seat].number}
	if err := unix.EpollCtl(c.loop.fd, op, c.fd[s], &e); err != nil && !c.flow.over {
		c.want[s] = 0
		c.flow.end(Failed, s, opError("epoll_ctl", err))
		c.leave()
	}
}

// leave frees the seat and gives the pair back. It may be called twice.
func (c *looped) leave() {
	l := c.loop
	if l.seats[c.seat].pair != c {
		return
	}
	for s := range Side(2) {
		if c.fd[s] >= 0 {
			c.watch(s, 0)
		}
	}
	l.seats[c.seat] = seat{number: l.seats[c.seat].number + 1}
	l.free = append(l.free, c.seat)
	go c.handBack()
}

func (c *looped) handBack() { c.flow.handBack(Pair{Conn: unmake(c.fd)}) }

func (c *looped) cut() {
	c.watch(B, 0)
	unix.SetsockoptLinger(c.fd[B], unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(c.fd[B])
	c.fd[B] = -1
	c.leave()
}

// read and write are never waited for, so the runtime need not be told of them.
func read(fd int, p []byte) (int, error)  { return transfer(unix.SYS_READ, fd, p) }
func write(fd int, p []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, p) }

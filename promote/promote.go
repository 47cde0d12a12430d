package promote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
)

// Options are the choices for a Promoter. The zero value is fit for use.
type Options struct {
	// Settle is how long no WAL must have arrived before Fence stops the WAL
	// receiver. 0 means 100 ms: some round trips of a slow network. Negative
	// means not to wait.
	Settle time.Duration
	// MaxSettle bounds that for a primary that goes on sending, over all calls
	// of Fence in one failover. 0 means 1 s.
	MaxSettle time.Duration
}

const (
	// pollEvery is the time between two looks at a server: a look costs it
	// about half a millisecond.
	pollEvery = 5 * time.Millisecond
	// callEvery is the time between two calls of pg_promote. One that comes
	// while the WAL receiver is just ending can be overlooked for
	// wal_retrieve_retry_interval, 5 s by default; the next wakes the server.
	callEvery = 50 * time.Millisecond
	// stillFor is how long the replay of a standby must stand still where
	// nothing else proves that it has reached the end. See drained.
	stillFor = 100 * time.Millisecond
)

// Promoter carries out on PostgreSQL what a failover decided. Its methods may
// be called from several goroutines; those of one member wait for each other.
type Promoter struct {
	opts    Options
	log     *slog.Logger
	members map[string]*member
}

// New returns a Promoter for members, by name. It connects when it is first
// asked to do something. The caller calls Close.
func New(members map[string]*pgconn.Config, opts Options, log *slog.Logger) *Promoter {
	if opts.Settle == 0 {
		opts.Settle = 100 * time.Millisecond
	}
	if opts.MaxSettle == 0 {
		opts.MaxSettle = time.Second
	}
	p := &Promoter{opts: opts, log: log, members: make(map[string]*member, len(members))}
	for name, config := range members {
		p.members[name] = newMember(name, config)
	}
	return p
}

// Release closes the connections that were kept for a failover; the next call
// opens them again. It waits for the calls that are under way.
func (p *Promoter) Release() {
	p.each(func(m *member) {
		m.drop()
		m.settling = time.Time{}
	})
}

// Close does what Release does, and forgets what Fence took.
func (p *Promoter) Close() {
	p.each(func(m *member) {
		m.drop()
		m.taken = nil
	})
}

func (p *Promoter) each(do func(*member)) {
	for _, m := range p.members {
		m.mu.Lock()
		do(m)
		m.mu.Unlock()
	}
}

// member returns a member, locked.
func (p *Promoter) member(name string) (*member, func(), error) {
	m, ok := p.members[name]
	if !ok {
		return nil, nil, fmt.Errorf("there is no member %q", name)
	}
	m.mu.Lock()
	return m, m.mu.Unlock, nil
}

// failed adds to an error what was to be done, and ErrNotYet if it failed only
// because time ran out.
func failed(ctx context.Context, what, member string, err error) error {
	if ctx.Err() != nil && !errors.Is(err, ErrNotYet) {
		err = notYet(ctx, "no answer", err)
	}
	return fmt.Errorf("%s %s: %w", what, member, err)
}

// Drain waits until a standby has replayed all WAL that it has, and returns the
// position that it has reached. With ErrNotYet it returns how far it got, or
// zero if it did not answer. Replay that is paused is resumed.
//
// That is everything received, unless the WAL ends within a record, whose
// beginning is of no use to anyone.
func (p *Promoter) Drain(ctx context.Context, name string) (cluster.Position, error) {
	m, unlock, err := p.member(name)
	if err != nil {
		return cluster.Position{}, err
	}
	defer unlock()
	began := time.Now()
	var last look
	var since time.Time // when last was first seen as it is
	for {
		l, err := m.look(ctx)
		if err == nil && l.paused {
			err = p.resume(ctx, m)
		}
		if err != nil {
			if last.recovering {
				err = orNotYet(ctx, "the replay is at "+last.progress(), err)
			}
			return last.position, failed(ctx, "drain", name, err)
		}
		if l.position != last.position || l.received != last.received {
			since = time.Now()
		}
		stood := time.Since(since)
		same := last.system != 0 && l.position == last.position && l.received == last.received
		last = l
		if !l.recovering || same && l.drained(stood) {
			p.log.Debug("drained", slog.String("member", name), slog.String("lsn", l.position.LSN.String()),
				slog.Duration("took", time.Since(began)))
			return l.position, nil
		}
		if !wait(ctx, pollEvery) {
			return l.position, failed(ctx, "drain", name, notYet(ctx, "the replay is at "+l.progress(), nil))
		}
	}
}

// drained reports whether a standby that has stood still for some time will
// replay no more of what it has.
//
// The server's own word is best: its replay waits for WAL. It alone helps
// where the WAL ends within a record, as after a crash of the primary, because
// the replay never reaches that end. But it shows only while the replay waits,
// and only to pg_monitor. So otherwise: all that was received is replayed;
// where nothing was received since the server's start, there may still be WAL
// on its disk, which a busy one reads with short breaks.
func (l look) drained(stood time.Duration) bool {
	switch {
	case l.atEnd && l.position.LSN < l.received:
		// It may also wait because it looked for more before the last came.
		return stood >= stillFor
	case l.atEnd:
		return true
	case l.received == 0:
		return stood >= stillFor
	default:
		return l.position.LSN >= l.received
	}
}

// progress says where the replay is and what holds it up.
func (l look) progress() string {
	s := fmt.Sprintf("%s, %d bytes before the end of what was received", l.position.LSN, l.position.LSN.Behind(l.received))
	if l.waitingOn != "" {
		s += ", waiting for " + l.waitingOn
	}
	if l.delay != "0" {
		s += ", delayed by recovery_min_apply_delay = " + l.delay
	}
	return s
}

// Promote makes a standby a primary and waits until it says that it is one. It
// calls pg_promote over and over, and whatever the server answers, it goes on
// asking: only pg_is_in_recovery tells the outcome. A primary is left as it is.
//
// primary_conninfo stays empty if Fence emptied it: should the server ever
// become a standby again, it follows no one until somebody says whom.
func (p *Promoter) Promote(ctx context.Context, name string) error {
	m, unlock, err := p.member(name)
	if err != nil {
		return err
	}
	defer unlock()
	began := time.Now()
	var called time.Time
	var last error
	for {
		row, err := m.query(ctx, "select pg_is_in_recovery()")
		if err == nil && len(row) == 1 && string(row[0]) == "f" {
			m.taken = nil // it will not be needed, and it is a secret
			p.log.Debug("promoted", slog.String("member", name), slog.Duration("took", time.Since(began)))
			return nil
		}
		if err == nil && time.Since(called) >= callEvery {
			called = time.Now()
			err = m.granted(ctx, m.exec(ctx, "select pg_promote(false)"), "EXECUTE ON FUNCTION pg_promote(boolean, integer)")
		}
		var denied *PrivilegeError
		if errors.As(err, &denied) {
			return failed(ctx, "promote", name, err)
		}
		pause := pollEvery
		if err != nil && sqlState(err) != notInState {
			last, pause = err, callEvery
		}
		if !wait(ctx, pause) {
			return failed(ctx, "promote", name, notYet(ctx, "it is still in recovery, or does not answer", last))
		}
	}
}

// Verify proves that a promoted server is the primary that follows rec: it is
// not in recovery, it has rec's system identifier and a later timeline, and a
// write on it is durable. The error wraps ErrStandby, ErrForeign,
// ErrOldTimeline or ErrNoWrite.
func (p *Promoter) Verify(ctx context.Context, name string, rec cluster.Record) (cluster.Observation, error) {
	m, unlock, err := p.member(name)
	if err != nil {
		return cluster.Observation{}, err
	}
	defer unlock()
	o, err := m.verify(ctx, rec)
	if err != nil {
		return cluster.Observation{}, failed(ctx, "verify", name, err)
	}
	return o, nil
}

func (m *member) verify(ctx context.Context, rec cluster.Record) (cluster.Observation, error) {
	l, err := m.look(ctx)
	switch {
	case err != nil:
		return cluster.Observation{}, err
	case l.system != rec.System:
		return cluster.Observation{}, fmt.Errorf("%w: its system identifier is %d, the record's is %d", ErrForeign, l.system, rec.System)
	case l.recovering:
		return cluster.Observation{}, ErrStandby
	case l.position.Timeline <= rec.Timeline:
		return cluster.Observation{}, fmt.Errorf("%w: it is on timeline %d, the record says %d", ErrOldTimeline, l.position.Timeline, rec.Timeline)
	}
	// A message in the WAL is a transaction that no table and no replica sees;
	// its commit waits until it is on disk.
	if err := m.exec(ctx, "select pg_logical_emit_message(true, 'pgfailproxy'::text, 'verify'::text)"); err != nil {
		return cluster.Observation{}, fmt.Errorf("%w: %w", ErrNoWrite, err)
	}
	asked := time.Now()
	if l, err = m.look(ctx); err != nil {
		return cluster.Observation{}, err
	}
	addr := m.conn.Conn().RemoteAddr()
	return cluster.Observation{
		Member: m.name, Asked: asked, Took: time.Since(asked), Reach: cluster.ReachAnswered,
		Role: cluster.RolePrimary, System: l.system, Position: l.position,
		Addr: cluster.Addr{Network: addr.Network(), Address: addr.String()}, ServerVersion: l.version,
	}, nil
}

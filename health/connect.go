package health

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
)

// maxAttempts bounds the connections that one question opens at a time. A server
// that hangs takes all of them when it wakes.
const maxAttempts = 4

// attempt is what became of one connection.
type attempt struct {
	conn *pgconn.PgConn
	err  error
}

// connect makes a connection. When a server dies together with its host or its
// container, a first packet may vanish while the next would be refused, or its
// name be gone: so it tries again beside an attempt that says nothing, after
// retry, then after twice that, and so on. The first connection, and the first
// answer that is none, decides for all: they are one question.
func connect(ctx context.Context, config *pgconn.Config, retry time.Duration) (*pgconn.PgConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan attempt)
	started, pending := 0, 0
	var full error
	try := func() {
		started++
		pending++
		go func() {
			conn, err := pgconn.ConnectConfig(ctx, config)
			results <- attempt{conn, err}
		}()
	}
	// No attempt outlives the question.
	defer func() {
		cancel()
		for ; pending > 0; pending-- {
			if a := <-results; a.err == nil {
				a.conn.Conn().Close()
			}
		}
	}()
	try()
	timer := time.NewTimer(retry)
	defer timer.Stop()
	for {
		select {
		case a := <-results:
			pending--
			switch r, _ := reach(a.err, true); r {
			case cluster.ReachFull: // perhaps for our own sake: the others may get in
				full = a.err
			case cluster.ReachSilent:
			default:
				return a.conn, a.err
			}
			switch {
			case pending == 0 && full != nil:
				return nil, full
			case pending == 0:
				return nil, a.err
			}
		case <-timer.C:
			if started < maxAttempts && ctx.Err() == nil {
				try()
				timer.Reset(retry << (started - 1))
			}
		}
	}
}

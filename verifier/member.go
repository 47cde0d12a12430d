package verifier

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
)

// maxConns is how many connections to one member there are at a time. A question
// takes a fraction of a millisecond, so few serve many log-ins, and those of a
// crowd that comes back at once wait their turn here and not in the server.
const maxConns = 4

// member is one PostgreSQL server, and the connections to it that are kept: a
// question then costs no log-in.
type member struct {
	config *pgconn.Config
	slots  chan struct{} // holds one for each question under way

	closing sync.Once

	mu   sync.Mutex   // guards what follows
	addr cluster.Addr // where idle ones go
	idle []*pgconn.PgConn
}

func newMember(config *pgconn.Config) *member {
	c := config.Copy()
	c.RuntimeParams = maps.Clone(c.RuntimeParams)
	if c.RuntimeParams == nil {
		c.RuntimeParams = make(map[string]string)
	}
	c.RuntimeParams["search_path"] = "pg_catalog" // nothing of others is found
	c.RuntimeParams["client_encoding"] = "UTF8"
	c.ValidateConnect = nil
	// The name is for the server's certificate only: where to is in the address.
	c.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	return &member{config: c, slots: make(chan struct{}, maxConns)}
}

// lookup asks over a kept connection or a new one. A kept one that turns out to
// be broken is given up and the question asked again: it changes nothing.
func (m *member) lookup(ctx context.Context, addr cluster.Addr, role string) (string, error) {
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	for {
		conn, kept, err := m.open(ctx, addr)
		if err != nil {
			return "", err
		}
		text, err := ask(ctx, conn, role)
		if err == nil || state(err) != "" && !conn.IsClosed() {
			m.give(addr, conn)
			return text, m.explain(err)
		}
		drop(conn)
		if !kept || ctx.Err() != nil {
			return "", err
		}
	}
}

// ask asks over a connection. NULL and no answer are empty.
func ask(ctx context.Context, conn *pgconn.PgConn, role string) (string, error) {
	result := conn.ExecParams(ctx, "select pgfailproxy.verifier($1::pg_catalog.text)", [][]byte{[]byte(role)}, nil, nil, nil).Read()
	if result.Err != nil || len(result.Rows) == 0 {
		return "", result.Err
	}
	return string(result.Rows[0][0]), nil
}

// explain turns the server's errors into ours.
func (m *member) explain(err error) error {
	switch code := state(err); {
	case slices.Contains(untranslatable, code):
		return nil
	case slices.Contains(missing, code):
		return fmt.Errorf("%w (database %q, role %q): %w", ErrNotInstalled, m.config.Database, m.config.User, err)
	}
	return err
}

func state(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// open returns a connection to addr, if possible one that was kept.
func (m *member) open(ctx context.Context, addr cluster.Addr) (conn *pgconn.PgConn, kept bool, err error) {
	if conn = m.take(addr); conn != nil {
		return conn, true, nil
	}
	c := m.config.Copy()
	dial := c.DialFunc
	c.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, addr.Network, addr.Address) }
	conn, err = pgconn.ConnectConfig(ctx, c)
	return conn, false, err
}

// take returns a kept connection to addr, or nil. Those to another address are
// closed: the member has moved.
func (m *member) take(addr cluster.Addr) *pgconn.PgConn {
	m.mu.Lock()
	var old []*pgconn.PgConn
	if m.addr != addr {
		old, m.idle, m.addr = m.idle, nil, addr
	}
	var conn *pgconn.PgConn
	if n := len(m.idle); n > 0 {
		conn, m.idle = m.idle[n-1], m.idle[:n-1]
	}
	m.mu.Unlock()
	drop(old...)
	return conn
}

// give keeps a connection for the next question.
func (m *member) give(addr cluster.Addr, conn *pgconn.PgConn) {
	m.mu.Lock()
	keep := m.addr == addr
	if keep {
		m.idle = append(m.idle, conn)
	}
	m.mu.Unlock()
	if !keep {
		drop(conn)
	}
}

// close waits until no question is under way, for good. It may be called again.
func (m *member) close() {
	m.closing.Do(func() {
		for range maxConns {
			m.slots <- struct{}{}
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		drop(m.idle...)
		m.idle = nil
	})
}

// drop closes connections without waiting for the server, which may hang.
func drop(conns ...*pgconn.PgConn) {
	for _, c := range conns {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		c.Close(ctx)
		cancel()
	}
}

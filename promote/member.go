package promote

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
)

// member is one PostgreSQL server. Its connection is kept from one step to the
// next, so that a step costs no log-in.
type member struct {
	name   string
	config *pgconn.Config

	mu   sync.Mutex // held for the length of a step
	conn *pgconn.PgConn
	// taken is the primary_conninfo that Fence emptied. It often holds a
	// password: it is kept in memory only and appears in no log and no error.
	taken *conninfo
	// settling is when Fence was first called for this failover, because the
	// limit for settling holds over all its calls. Zero if it is not under way.
	settling time.Time
}

func newMember(name string, config *pgconn.Config) *member {
	c := config.Copy()
	c.RuntimeParams = maps.Clone(c.RuntimeParams)
	if c.RuntimeParams == nil {
		c.RuntimeParams = make(map[string]string)
	}
	c.RuntimeParams["application_name"] = "pgfailproxy"
	// Only PostgreSQL's own functions and operators are found.
	c.RuntimeParams["search_path"] = "pg_catalog"
	// A new primary has no synchronous standby yet: a write that waited for one
	// would hang.
	c.RuntimeParams["synchronous_commit"] = "local"
	// EscapeString relies on it.
	c.RuntimeParams["standard_conforming_strings"] = "on"
	c.RuntimeParams["client_encoding"] = "UTF8"
	c.ValidateConnect = nil // whatever its role is now
	return &member{name: name, config: c}
}

// query returns the only row of sql. If the kept connection turns out to be
// broken, it is opened again once and sql is sent again: every statement of
// this package may be repeated.
func (m *member) query(ctx context.Context, sql string) ([][]byte, error) {
	for {
		kept := m.conn != nil
		if !kept {
			conn, err := pgconn.ConnectConfig(ctx, m.config)
			if err != nil {
				return nil, err
			}
			m.conn = conn
		}
		row, err := single(m.conn.Exec(ctx, sql).ReadAll())
		if err == nil {
			return row, nil
		}
		if sqlState(err) != "" && !m.conn.IsClosed() {
			return nil, err // the server's answer
		}
		m.drop()
		if !kept || ctx.Err() != nil {
			return nil, err
		}
	}
}

// exec runs a statement that returns no row.
func (m *member) exec(ctx context.Context, sql string) error {
	_, err := m.query(ctx, sql)
	return err
}

func single(results []*pgconn.Result, err error) ([][]byte, error) {
	if err != nil || len(results) == 0 || len(results[0].Rows) == 0 {
		return nil, err
	}
	return results[0].Rows[0], nil
}

// drop closes the connection without waiting for the server, which may hang.
func (m *member) drop() {
	if m.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	m.conn.Close(ctx)
	m.conn = nil
}

// look is one look at a member.
type look struct {
	recovering bool
	position   cluster.Position // of a primary: what it has flushed; of a standby: timeline and what it has replayed
	system     cluster.SystemID
	version    int

	// Of a standby only.

	received  cluster.LSN // and made durable; zero if it has received nothing since it started
	written   cluster.LSN // received, perhaps not durable yet; zero without a connected receiver
	receiver  bool        // the WAL receiver's process exists, connected or not
	connected bool        // it is connected
	paused    bool        // the replay is paused, or will be
	atEnd     bool        // the replay waits for WAL that is not there
	waitingOn string      // what the replay waits for, if it is known
	delay     string      // recovery_min_apply_delay
}

// lookQuery asks all in one statement. In recovery the functions for a primary
// are errors, and the other way round; so the role is asked once, in a
// materialized CTE.
//
// The control file still shows the old timeline right after a promotion, so a
// primary's is that of its current WAL file's name.
//
// A receiver that is connecting is not in pg_stat_wal_receiver, but its process
// is in pg_stat_activity.
const lookQuery = `with s as materialized (select pg_is_in_recovery() as recovering),
  startup as materialized (select a.wait_event from pg_stat_activity a where a.backend_type = 'startup')
select s.recovering,
  case when s.recovering then greatest(
      (select w.received_tli from pg_stat_wal_receiver w),
      (select c.timeline_id from pg_control_checkpoint() c),
      (select r.min_recovery_end_timeline from pg_control_recovery() r))::text
    else substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8) end,
  case when s.recovering then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end,
  (select c.system_identifier from pg_control_system() c),
  current_setting('server_version_num'),
  case when s.recovering then pg_last_wal_receive_lsn() end,
  exists (select from pg_stat_wal_receiver w where w.pid is not null)
    or exists (select from pg_stat_activity a where a.backend_type = 'walreceiver'),
  case when s.recovering then pg_get_wal_replay_pause_state() <> 'not paused' end,
  (select u.wait_event in ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval') from startup u),
  (select u.wait_event from startup u),
  current_setting('recovery_min_apply_delay'),
  (select w.written_lsn from pg_stat_wal_receiver w),
  exists (select from pg_stat_wal_receiver w where w.pid is not null)
from s`

func (m *member) look(ctx context.Context) (look, error) {
	row, err := m.query(ctx, lookQuery)
	if err != nil {
		return look{}, err
	}
	return parseLook(row)
}

// parseLook reads a row of lookQuery, where NULL is an empty value.
func parseLook(row [][]byte) (l look, err error) {
	if len(row) != 13 {
		return look{}, fmt.Errorf("the answer has %d columns: is this PostgreSQL?", len(row))
	}
	is := func(i int) bool { return string(row[i]) == "t" }
	l.recovering = is(0)
	base := 16 // a WAL file's name is hexadecimal
	if l.recovering {
		base = 10
	}
	timeline, err := strconv.ParseUint(string(row[1]), base, 32)
	if err != nil {
		return look{}, fmt.Errorf("timeline: %w", err)
	}
	l.position.Timeline = cluster.TimelineID(timeline)
	if l.position.LSN, err = parseLSN(row[2]); err != nil {
		return look{}, err
	}
	system, err := strconv.ParseUint(string(row[3]), 10, 64)
	if err != nil {
		return look{}, fmt.Errorf("system identifier: %w", err)
	}
	l.system = cluster.SystemID(system)
	if l.version, err = strconv.Atoi(string(row[4])); err != nil {
		return look{}, fmt.Errorf("server version: %w", err)
	}
	if l.received, err = parseLSN(row[5]); err != nil {
		return look{}, err
	}
	if l.written, err = parseLSN(row[11]); err != nil {
		return look{}, err
	}
	l.receiver, l.connected, l.paused, l.atEnd = is(6), is(12), is(7), is(8)
	l.waitingOn, l.delay = string(row[9]), string(row[10])
	return l, nil
}

func parseLSN(b []byte) (cluster.LSN, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return cluster.ParseLSN(string(b))
}

// wait waits for d, or until ctx ends, and reports whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}

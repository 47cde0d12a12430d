package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
)

// query asks all in one round trip. Every name is qualified, so that no
// search_path can bend it.
//
// Whether the server is in recovery is asked once, in a materialized CTE: a
// promotion in the middle of the query would otherwise mix two answers.
//
// A primary's timeline is that of its current WAL file's name: the control file
// still shows the old one right after a promotion. A standby shows the highest
// of the timeline that it receives, of its last restart point and of its
// minimum recovery end; functions on WAL file names are refused in recovery.
const query = `with s as materialized (select pg_catalog.pg_is_in_recovery() as recovering)
select 1,
  s.recovering,
  (select c.system_identifier from pg_catalog.pg_control_system() c),
  case when s.recovering then greatest(
      (select w.received_tli from pg_catalog.pg_stat_wal_receiver w),
      (select k.timeline_id from pg_catalog.pg_control_checkpoint() k),
      (select r.min_recovery_end_timeline from pg_catalog.pg_control_recovery() r))::text
    else pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 1, 8) end,
  case when s.recovering then greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())
    else pg_catalog.pg_current_wal_flush_lsn() end,
  case when s.recovering then pg_catalog.pg_last_wal_replay_lsn() end,
  exists (select from pg_catalog.pg_stat_wal_receiver w where w.pid is not null),
  pg_catalog.current_setting('server_version_num')
from s`

// columns is how many values query returns.
const columns = 8

// walQuery returns the highest timeline of the WAL files that a server has, in
// hexadecimal. It needs pg_monitor.
const walQuery = `select max(pg_catalog.substr(f.name, 1, 8)) from pg_catalog.pg_ls_waldir() f
where f.name operator(pg_catalog.~) '^[0-9A-F]{24}$'`

// errShape is an answer that no PostgreSQL gives.
var errShape = errors.New("the answer to a probe has the wrong shape: is this PostgreSQL?")

// ask sends query and fills o with the answer.
func ask(ctx context.Context, conn *pgconn.PgConn, o *cluster.Observation) error {
	row, err := one(ctx, conn, query, columns)
	if err != nil {
		return err
	}
	if err := parse(row, o); err != nil {
		return err
	}
	if o.Role == cluster.RoleStandby && !o.Streaming {
		return askWAL(ctx, conn, o)
	}
	return nil
}

// askWAL corrects the timeline of a standby that does not stream: its control
// file may show an old one until the next restart point, minutes after it has
// followed its primary to a new one. Without the privilege it stays as it is.
func askWAL(ctx context.Context, conn *pgconn.PgConn, o *cluster.Observation) error {
	row, err := one(ctx, conn, walQuery, 1)
	var denied *pgconn.PgError
	if errors.As(err, &denied) && denied.Code == "42501" || err == nil && row[0] == nil {
		return nil
	}
	if err != nil {
		return err
	}
	timeline, err := strconv.ParseUint(string(row[0]), 16, 32)
	if err != nil {
		return fmt.Errorf("timeline of WAL files: %w", err)
	}
	o.Position.Timeline = max(o.Position.Timeline, cluster.TimelineID(timeline))
	return nil
}

// one returns the only row of sql, of so many columns. A server that sends more
// than one is not read to its end.
func one(ctx context.Context, conn *pgconn.PgConn, sql string, columns int) ([][]byte, error) {
	results := conn.Exec(ctx, sql)
	var row [][]byte
	for results.NextResult() {
		r := results.ResultReader()
		for r.NextRow() {
			if row != nil || len(r.Values()) != columns {
				conn.Conn().Close() // else Close would read on
				results.Close()
				return nil, errShape
			}
			row = make([][]byte, columns)
			for i, v := range r.Values() {
				row[i] = bytes.Clone(v)
			}
		}
	}
	if err := results.Close(); err != nil {
		return nil, err
	}
	if row == nil {
		return nil, errShape
	}
	return row, nil
}

// parse reads one row of query. NULL comes as an empty value.
func parse(row [][]byte, o *cluster.Observation) error {
	recovering := string(row[1]) == "t"
	o.Role = cluster.RolePrimary
	base := 16 // a WAL file name is hexadecimal
	if recovering {
		o.Role, base = cluster.RoleStandby, 10
	}
	system, err := strconv.ParseUint(string(row[2]), 10, 64)
	if err != nil {
		return fmt.Errorf("system identifier: %w", err)
	}
	o.System = cluster.SystemID(system)
	timeline, err := strconv.ParseUint(string(row[3]), base, 32)
	if err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	o.Position.Timeline = cluster.TimelineID(timeline)
	if o.Position.LSN, err = parseLSN(row[4]); err != nil {
		return err
	}
	if o.Replayed, err = parseLSN(row[5]); err != nil {
		return err
	}
	o.Streaming = recovering && string(row[6]) == "t"
	if o.ServerVersion, err = strconv.Atoi(string(row[7])); err != nil {
		return fmt.Errorf("server version: %w", err)
	}
	return nil
}

func parseLSN(b []byte) (cluster.LSN, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return cluster.ParseLSN(string(b))
}

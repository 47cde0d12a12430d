package promote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// conninfo is a primary_conninfo and where it is written.
type conninfo struct {
	value string
	// auto: it is in postgresql.auto.conf, where ALTER SYSTEM writes;
	// otherwise it is in a file below that ours only covers.
	auto bool
}

// Fence stops the WAL receiver of a standby, so that a primary that still runs
// cannot have another commit acknowledged through it. It returns nil when the
// receiver is gone; what was received is kept.
//
// First it lets WAL that is on its way arrive (Options.Settle): a primary that
// is being stopped sends everything before it ends, and what waits in a
// socket's buffer when the receiver is stopped is lost.
//
// The receiver is stopped by emptying primary_conninfo, which Unfence gives
// back. The standby's replay is resumed if it was paused, because PostgreSQL
// stops a receiver only when its replay has reached the end of what is there.
// WAL from a restore_command is not kept out.
//
// Without the privilege for it the error is a *PrivilegeError, and where the
// server lets nobody change the setting it wraps ErrRefused: nothing was changed
// then, and what was on its way has arrived all the same. On a server that
// is no standby there is nothing to stop.
func (p *Promoter) Fence(ctx context.Context, name string) error {
	m, unlock, err := p.member(name)
	if err != nil {
		return err
	}
	defer unlock()
	began := time.Now()
	l, err := p.settle(ctx, m)
	if err == nil && l.recovering {
		if err = m.takeConninfo(ctx); err == nil {
			err = p.receiverGone(ctx, m)
		}
	}
	if err != nil {
		err = failed(ctx, "fence", name, err)
	}
	if !errors.Is(err, ErrNotYet) {
		m.settling = time.Time{}
	}
	if err != nil {
		return err
	}
	p.log.Debug("WAL receiver stopped", slog.String("member", name), slog.Duration("took", time.Since(began)))
	return nil
}

// settle waits until no more WAL arrives. While the receiver makes durable what
// it has, which may take a slow disk long, it reads nothing: that is no silence.
func (p *Promoter) settle(ctx context.Context, m *member) (look, error) {
	if m.settling.IsZero() {
		m.settling = time.Now()
	}
	var last look
	still := time.Now()
	for first := true; ; first = false {
		l, err := m.look(ctx)
		if err != nil || !l.connected {
			return l, err // one that only tries to connect gets nothing
		}
		if l.received != last.received || l.written != last.written || l.written > l.received {
			last, still = l, time.Now()
		}
		if time.Since(still) >= p.opts.Settle {
			return l, nil
		}
		if time.Since(m.settling) >= p.opts.MaxSettle {
			if !first { // else an earlier call has said so
				p.log.Warn("WAL still arrives at the standby that is to be promoted: its primary is alive; cutting it off",
					slog.String("member", m.name), slog.String("lsn", l.received.String()))
			}
			return l, nil
		}
		if !wait(ctx, pollEvery) {
			return l, notYet(ctx, fmt.Sprintf("WAL still arrives, at %s", l.received), nil)
		}
	}
}

// takeConninfo empties primary_conninfo, after it has made sure that the rest
// can be done as well: emptied but not reloaded it would work at some later
// time, unexpected.
func (m *member) takeConninfo(ctx context.Context) error {
	if err := m.mayFence(ctx); err != nil {
		return err
	}
	c, err := m.conninfo(ctx)
	if err != nil {
		return err
	}
	if c.value != "" {
		// Not in a transaction with anything else: ALTER SYSTEM refuses that.
		err := m.exec(ctx, "alter system set primary_conninfo = ''")
		if refuses(err) {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		m.taken = &c // also if it is not known whether it was
		if err != nil {
			return err
		}
	}
	// Again even if it was empty: an earlier call may have ended between.
	return m.exec(ctx, "select pg_reload_conf()")
}

// refuses reports whether err is a server's answer to ALTER SYSTEM itself, and
// not that it ends our connection or takes no new one.
func refuses(err error) bool {
	var login *pgconn.ConnectError
	state := sqlState(err)
	return state != "" && !strings.HasPrefix(state, "57") && !errors.As(err, &login)
}

const mayFenceQuery = `select quote_ident(current_user),
  has_parameter_privilege('primary_conninfo', 'alter system'),
  has_function_privilege('pg_reload_conf()', 'execute'),
  pg_has_role('pg_read_all_settings', 'usage')`

func (m *member) mayFence(ctx context.Context) error {
	row, err := m.query(ctx, mayFenceQuery)
	if err != nil {
		return err
	}
	role := string(row[0])
	var grants []string
	for i, grant := range []string{
		"GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO ",
		"GRANT EXECUTE ON FUNCTION pg_reload_conf() TO ",
		"GRANT pg_monitor TO ",
	} {
		if string(row[1+i]) != "t" {
			grants = append(grants, grant+role)
		}
	}
	if grants != nil {
		return &PrivilegeError{Member: m.name, Grants: grants}
	}
	return nil
}

// conninfo returns primary_conninfo as this connection knows it.
func (m *member) conninfo(ctx context.Context) (conninfo, error) {
	row, err := m.query(ctx, `select s.setting, coalesce(s.sourcefile, '') from pg_settings s where s.name = 'primary_conninfo'`)
	if err != nil {
		return conninfo{}, err
	}
	if row == nil { // hidden from those who may not read all settings
		return conninfo{}, fmt.Errorf("primary_conninfo is not visible")
	}
	return conninfo{value: string(row[0]), auto: strings.HasSuffix(string(row[1]), "postgresql.auto.conf")}, nil
}

// receiverGone waits until the server has taken note that primary_conninfo is
// empty and has no WAL receiver, twice in a row: the first time one may just
// be about to start.
func (p *Promoter) receiverGone(ctx context.Context, m *member) error {
	gone, why := 0, "the server has not reloaded its configuration"
	for {
		c, err := m.conninfo(ctx)
		if err != nil {
			return orNotYet(ctx, why, err)
		}
		l, err := m.look(ctx)
		if err != nil {
			return orNotYet(ctx, why, err)
		}
		if l.paused {
			if err := p.resume(ctx, m); err != nil {
				return err
			}
		}
		switch {
		case c.value != "", l.receiver:
			gone = 0
		default:
			gone++
		}
		if gone == 2 {
			return nil
		}
		why = "the WAL receiver still runs"
		if c.value != "" {
			why = "primary_conninfo is still set; is it on the server's command line?"
		} else if l.received > l.position.LSN {
			why += ", and will until all is replayed; the replay is at " + l.progress()
		}
		if !wait(ctx, pollEvery) {
			return notYet(ctx, why, nil)
		}
	}
}

// resume ends a pause of the replay.
func (p *Promoter) resume(ctx context.Context, m *member) error {
	if err := m.granted(ctx, m.exec(ctx, "select pg_wal_replay_resume()"), "EXECUTE ON FUNCTION pg_wal_replay_resume()"); err != nil {
		if sqlState(err) == notInState {
			return nil // it is no standby any more
		}
		return err
	}
	p.log.Info("the replay was paused and is resumed", slog.String("member", m.name))
	return nil
}

// granted turns a refused privilege into the error that names the grant.
func (m *member) granted(ctx context.Context, err error, privilege string) error {
	var login *pgconn.ConnectError // "permission denied for database" has the same SQLSTATE
	if sqlState(err) != insufficientPrivilege || errors.As(err, &login) {
		return err
	}
	role, err := m.query(ctx, "select quote_ident(current_user)")
	if err != nil {
		return err
	}
	return &PrivilegeError{Member: m.name, Grants: []string{"GRANT " + privilege + " TO " + string(role[0])}}
}

// Unfence gives back what Fence took, for a failover that is undone, and
// returns when the server has taken note; the receiver starts by itself. If
// Fence took nothing there is nothing to do.
//
// What was taken is only in the memory of this Promoter, because it may hold a
// secret. After a restart of the program a standby that was fenced stays so,
// and the error says what a person has to do. PostgreSQL writes the value that
// it is given into its own log, as with every reload; a password is better kept
// in a password file of the server.
func (p *Promoter) Unfence(ctx context.Context, name string) error {
	m, unlock, err := p.member(name)
	if err != nil {
		return err
	}
	defer unlock()
	m.settling = time.Time{}
	if err := m.giveConninfo(ctx); err != nil {
		return failed(ctx, "unfence", name, err)
	}
	m.taken = nil
	return nil
}

func (m *member) giveConninfo(ctx context.Context) error {
	if m.taken == nil {
		return m.notTaken(ctx)
	}
	if c, err := m.conninfo(ctx); err != nil || c.value != "" && c.value != m.taken.value {
		return err // somebody has set another one: theirs is newer
	}
	sql := "alter system reset primary_conninfo"
	if m.taken.auto {
		if _, err := m.query(ctx, "select 1"); err != nil { // EscapeString needs a connection
			return err
		}
		quoted, err := m.conn.EscapeString(m.taken.value)
		if err != nil {
			return err
		}
		sql = "alter system set primary_conninfo = '" + quoted + "'"
	}
	if err := m.exec(ctx, sql); err != nil {
		if state := sqlState(err); state != "" {
			// The server's message may repeat the value.
			return fmt.Errorf("primary_conninfo could not be set again (SQLSTATE %s)", state)
		}
		return err
	}
	if err := m.exec(ctx, "select pg_reload_conf()"); err != nil {
		return err
	}
	for {
		c, err := m.conninfo(ctx)
		if err != nil || c.value == m.taken.value {
			return err
		}
		if !wait(ctx, pollEvery) {
			return notYet(ctx, "the server has not reloaded its configuration", nil)
		}
	}
}

// notTaken returns an error if the member is a standby that was fenced by an
// earlier run of the program.
func (m *member) notTaken(ctx context.Context) error {
	var denied *PrivilegeError
	if err := m.mayFence(ctx); errors.As(err, &denied) {
		return nil // then it was not fenced
	} else if err != nil {
		return err
	}
	l, err := m.look(ctx)
	if err != nil || !l.recovering {
		return err
	}
	c, err := m.conninfo(ctx)
	if err == nil && c.value == "" {
		return fmt.Errorf("primary_conninfo is empty and its former value is not known any more: set it with ALTER SYSTEM and reload")
	}
	return err
}

package promote_test

import (
	"errors"
	"testing"

	"pgfailproxy/internal/pgtest"
)

func TestUnfenceOfADeadStandbyAfterARestartIsNoSuccess(t *testing.T) {
	s := newScene(t)
	s.ok(s.p.Fence(within(t, limit), "standby"))
	s.p.Close() // as a restart of the program
	s.ok(s.standby.Kill())
	if err := s.p.Unfence(within(t, limit), "standby"); err == nil {
		t.Error("a dead standby was sent back to streaming")
	}
}

func TestUnfenceLeavesWhatAPersonHasSet(t *testing.T) {
	s := newScene(t)
	s.ok(s.p.Fence(within(t, limit), "standby"))
	const set = "host=127.0.0.1 port=1 user=somebody"
	pgtest.Exec(t, s.standby, "alter system set primary_conninfo = '"+set+"'")
	pgtest.Exec(t, s.standby, "select pg_reload_conf()")
	pgtest.Until(t, limit, func() error {
		if v := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')"); v != set {
			return errors.New("not reloaded yet")
		}
		return nil
	})
	s.p.Release() // a new session knows it too
	s.ok(s.p.Unfence(within(t, limit), "standby"))
	if got := pgtest.Value[string](t, s.standby, "select current_setting('primary_conninfo')"); got != set {
		t.Error("what a person has set was overwritten")
	}
}

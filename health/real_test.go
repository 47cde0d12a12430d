package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
)

func once(t *testing.T, s *pgserver.Server, user string) cluster.Observation {
	t.Helper()
	config, err := pgconn.ParseConfig(s.ConnString(user, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return Once(t.Context(), s.Name(), config, 10*time.Second)
}

// A standby that followed its primary to a new timeline shows the old one in its
// control file until the next restart point. When that primary dies, it must not
// be taken for one that stayed behind.
func TestAStandbyThatLostItsPrimaryShowsTheTimelineThatItFollowed(t *testing.T) {
	one := pgtest.Primary(t, pgserver.Options{Name: "one"})
	two := pgtest.Standby(t, one, pgserver.Options{Name: "two"})
	three := pgtest.Standby(t, two, pgserver.Options{Name: "three"})
	pgtest.Role(t, one, "watcher")
	pgtest.Exec(t, one, "create role poor login")
	pgtest.WaitReplayed(t, one, three)
	pgtest.Exec(t, two, "select pg_promote()")
	pgtest.Exec(t, two, "create table t (i int)")
	pgtest.WaitReplayed(t, two, three)
	if o := once(t, two, "watcher"); o.Role != cluster.RolePrimary || o.Position.Timeline != 2 {
		t.Fatalf("promoted: %+v", o)
	}
	if o := once(t, three, "watcher"); !o.Streaming || o.Position.Timeline != 2 {
		t.Fatalf("streaming: %+v", o)
	}
	if err := two.Kill(); err != nil {
		t.Fatal(err)
	}
	pgtest.Until(t, 20*time.Second, func() error {
		if o := once(t, three, "watcher"); o.Streaming {
			return fmt.Errorf("still streaming: %+v", o)
		}
		return nil
	})
	if o := once(t, three, "watcher"); o.Position.Timeline != 2 || o.Role != cluster.RoleStandby {
		t.Errorf("alone: %+v", o)
	}
	if o := once(t, three, "poor"); !o.Healthy() {
		t.Errorf("without the privilege to see WAL files there is no answer at all: %+v", o)
	}
}

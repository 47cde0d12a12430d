package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"pgfailproxy/admin"
	"pgfailproxy/internal/pgserver"
)

// localWorld runs on processes of this machine.
type localWorld struct {
	in  pgserver.Install
	o   options
	dir string // of the present run

	primary, standby *pgserver.Server
	proxy            *process
	listen, admin    int
}

func newLocalWorld(_ context.Context, o options) (world, error) {
	in, err := pgserver.Find()
	return &localWorld{in: in, o: o}, err
}

func (w *localWorld) about() string {
	return fmt.Sprintf("Servers: PostgreSQL %d as processes of this machine, fsync on; pgfailproxy with default settings. kill is SIGKILL to all processes of the primary, stop a fast shutdown, pause SIGSTOP to all", w.in.Major)
}

func (w *localWorld) faults() []string { return []string{"kill", "stop", "pause"} }
func (w *localWorld) conn() string     { return connString(w.listen) }

func (w *localWorld) renew(ctx context.Context) (err error) {
	if err := w.close(); err != nil {
		return err
	}
	if w.dir, err = makeDir(w.o.dir, "run-"); err != nil {
		return err
	}
	if w.primary, err = w.in.InitPrimary(ctx, filepath.Join(w.dir, "pg1"), pgserver.Options{Name: "pg1"}); err != nil {
		return err
	}
	if err := w.primary.Start(ctx); err != nil {
		return err
	}
	if w.standby, err = w.in.CloneStandby(ctx, w.primary, filepath.Join(w.dir, "pg2"), pgserver.Options{Name: "pg2"}); err != nil {
		return err
	}
	if err := w.standby.Start(ctx); err != nil {
		return err
	}
	if w.listen, err = freePort(); err != nil {
		return err
	}
	if w.admin, err = freePort(); err != nil {
		return err
	}
	w.proxy, err = startProcess(w.dir, "pgfailproxy", w.o.proxy, proxyArgs(w.dir, w.listen, w.admin,
		"pg1="+connString(w.primary.Port()), "pg2="+connString(w.standby.Port()))...)
	return err
}

func (w *localWorld) strike(ctx context.Context, fault string) error {
	switch fault {
	case "kill":
		return w.primary.Kill()
	case "stop":
		return w.primary.Stop(ctx, pgserver.Fast)
	case "pause":
		return w.primary.Pause()
	}
	return fmt.Errorf("%q cannot be done to a process", fault)
}

func (w *localWorld) status(ctx context.Context) (admin.Status, error) {
	s, err := admin.Fetch(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(w.admin)))
	if err != nil && w.proxy != nil {
		err = fmt.Errorf("%w\n%s", err, w.proxy.tail())
	}
	return s, err
}

// close ends what the last run left.
func (w *localWorld) close() (err error) {
	if w.proxy != nil {
		w.proxy.stop()
	}
	for _, s := range []*pgserver.Server{w.standby, w.primary} {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	w.proxy, w.standby, w.primary = nil, nil, nil
	if w.dir != "" {
		err = errors.Join(err, os.RemoveAll(w.dir))
	}
	return err
}

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Options are the choices for one server. The zero value is a server that
// trusts every local user and writes durably.
type Options struct {
	// Name is the server's cluster_name, the name under which a standby
	// appears on its primary. Empty means "postgres".
	Name string
	// Password is the superuser's. With one, every TCP connection needs
	// SCRAM-SHA-256; empty means that every local user is trusted. A standby
	// has its primary's, whatever is said here.
	Password string
	// NoSync leaves out fsync: quicker, and all is lost in a real power cut.
	NoSync bool
	// Settings are further lines of postgresql.conf, name to value.
	Settings map[string]string
}

// settings are the lines of postgresql.conf for o, in a fixed order.
func (o Options) settings() string {
	all := map[string]string{
		"listen_addresses":  Host,
		"cluster_name":      o.Name,
		"wal_level":         "replica",
		"hot_standby":       "on",
		"max_wal_senders":   "10",
		"wal_keep_size":     "256MB", // a standby may be away for a while
		"wal_log_hints":     "on",    // so that pg_rewind can be used
		"fsync":             "on",
		"logging_collector": "off",
		"log_line_prefix":   "%m [%p] %b ",
		// In the data folder, which Close removes: a server that is killed
		// leaves it.
		"dynamic_shared_memory_type": "mmap",
	}
	if o.NoSync {
		all["fsync"] = "off"
	}
	maps.Copy(all, o.Settings)
	var b strings.Builder
	b.WriteString("\n# Written by pgserver. Port and socket are on the command line.\n")
	quote := strings.NewReplacer(`\`, `\\`, `'`, `''`)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, quote.Replace(all[name]))
	}
	return b.String()
}

// InitPrimary makes a new database cluster in dir, which must be empty or not
// exist, and returns its server, not started. The caller calls Close, which
// removes dir. As root, every folder above dir must let the other user through.
//
// Each call runs initdb (about half a second): a copy of a finished one would
// have the same system identifier, and then strangers look like relatives.
func (in Install) InitPrimary(ctx context.Context, dir string, o Options) (*Server, error) {
	return in.create(dir, o, func(s *Server) error {
		args := []string{"-D", s.data(), "-U", Superuser, "--encoding=UTF8", "--locale=C", "--no-sync",
			"--auth-local=trust"}
		if o.Password == "" {
			args = append(args, "--auth-host=trust")
		} else {
			file := filepath.Join(s.dir, "password")
			if err := os.WriteFile(file, []byte(o.Password+"\n"), 0o600); err != nil {
				return err
			}
			defer os.Remove(file)
			if err := in.owner.own(file); err != nil {
				return err
			}
			args = append(args, "--auth-host=scram-sha-256", "--pwfile="+file)
		}
		return in.run(ctx, s.dir, nil, "initdb", args...)
	})
}

// CloneStandby copies the running primary into dir with pg_basebackup and
// returns a server, not started, that will follow it. What InitPrimary says of
// dir and Close holds here.
func (in Install) CloneStandby(ctx context.Context, primary *Server, dir string, o Options) (*Server, error) {
	o.Password = primary.opts.Password
	return in.create(dir, o, func(s *Server) error {
		args := []string{"-D", s.data(), "-h", Host, "-p", fmt.Sprint(primary.Port()), "-U", Superuser,
			"-R", "-X", "stream", "-c", "fast", "--no-sync"}
		var env []string
		if o.Password != "" {
			env = append(env, "PGPASSWORD="+o.Password) // not visible in the process list
		}
		return in.run(ctx, s.dir, env, "pg_basebackup", args...)
	})
}

// create makes dir, lets fill put a data folder there and adds the settings. If
// that fails nothing is left.
func (in Install) create(dir string, o Options, fill func(*Server) error) (_ *Server, err error) {
	if o.Name == "" {
		o.Name = "postgres"
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := mustBeEmpty(dir); err != nil {
		return nil, err
	}
	s := &Server{in: in, dir: dir, opts: o}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
			err = fmt.Errorf("create %s in %s: %w", o.Name, dir, err)
		}
	}()
	if err := in.owner.own(dir); err != nil {
		return nil, err
	}
	if err := fill(s); err != nil {
		return nil, err
	}
	conf, err := os.OpenFile(filepath.Join(s.data(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	_, err = conf.WriteString(o.settings())
	if err := errors.Join(err, conf.Close()); err != nil {
		return nil, err
	}
	return s, nil
}

func mustBeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("%s: %w", dir, fs.ErrExist)
	}
	return err
}

package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"pgfailproxy/config"
	"pgfailproxy/internal/certs"
)

const runUse = `Usage: pgfailproxy [run] [flags]

Runs the proxy: clients connect to --listen, and their sessions go to whichever
member is the primary. When that dies, a standby is promoted.

  pgfailproxy run --listen :6432 \
    --member pg1="host=10.0.0.1 user=pgfailproxy dbname=postgres" \
    --member pg2="host=10.0.0.2 user=pgfailproxy dbname=postgres"

Every setting is also a key of the YAML file (retry_interval) and a variable
(PGFAILPROXY_RETRY_INTERVAL). Passwords are best kept in a .pgpass file, or in
PGPASSWORD. "pgfailproxy check" with the same flags looks whether all is ready.`

func runCommand(ctx context.Context, args []string, std streams) error {
	fs := flags("run", runUse, std)
	src := config.Flags(fs)
	if done, err := parse(fs, args, std); done {
		return err
	}
	cfg, err := src.Load(os.Environ())
	if err != nil {
		return err
	}
	log := newLogger(std.err, cfg.LogFormat, cfg.LogLevel)
	i, err := newInstance(cfg, log)
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings() {
		log.Warn(w)
	}
	if i.certs != nil {
		for _, w := range i.certs.Warnings() {
			log.Warn(w)
		}
	}
	log.Info(versionText()+" listens", "clients", i.clients.Addr().String(), "admin", cfg.Admin, "record", cfg.Record, "members", len(cfg.Members))

	ctx, abort, cancel := untilSignalled(ctx)
	defer cancel()
	if i.certs != nil {
		defer reloadOnHangup(i.certs, log)()
	}
	if err := i.run(ctx, abort); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// reloadOnHangup reads the certificate again with each SIGHUP. The old one stays
// if that fails, and whoever keeps it says so.
func reloadOnHangup(k *certs.Keeper, log *slog.Logger) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range hangups {
			if k.Reload() == nil {
				log.Info("read the certificate for clients again")
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(hangups)
		<-ended
	}
}

// untilSignalled returns a context that ends with the first SIGTERM or
// interrupt, and one that ends with the second.
func untilSignalled(parent context.Context) (first, second context.Context, cancel func()) {
	first, endFirst := context.WithCancelCause(parent)
	second, endSecond := context.WithCancelCause(context.WithoutCancel(parent))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, end := range []context.CancelCauseFunc{endFirst, endSecond} {
			select {
			case <-signals:
				end(errStopped)
			case <-done:
				return
			}
		}
	}()
	return first, second, func() {
		signal.Stop(signals)
		close(done)
		<-ended
		endFirst(errStopped)
		endSecond(errStopped)
	}
}

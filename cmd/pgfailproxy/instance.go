package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"pgfailproxy/admin"
	"pgfailproxy/cluster"
	"pgfailproxy/config"
	"pgfailproxy/failover"
	"pgfailproxy/health"
	"pgfailproxy/internal/certs"
	"pgfailproxy/internal/tcp"
	"pgfailproxy/lease"
	"pgfailproxy/promote"
	"pgfailproxy/proxy"
	"pgfailproxy/verifier"
)

const (
	// retryEvery is how long a failover that failed rests before it is tried
	// again.
	retryEvery = 10 * time.Second
	// seenEvery is how old the position in the record may get while the primary
	// writes: one small durable write each time.
	seenEvery = 10 * time.Second
	// maxSettle is how long WAL from the old primary is waited for while it goes
	// on arriving.
	maxSettle = 5 * time.Second
	// firstLook is how long the very first start waits for a member that does
	// not answer.
	firstLook = 10 * time.Second
	// errorTimeout is how long a candidate may answer with errors before the
	// next is tried.
	errorTimeout = 5 * time.Second
)

// errStopped is the cause of a shutdown that somebody asked for.
var errStopped = errors.New("the proxy is shutting down")

// instance is one proxy: everyone, joined. run ends it; until then its owner
// closes it.
type instance struct {
	config *config.Config
	log    *slog.Logger

	record     *lease.File
	router     *proxy.Router
	server     *proxy.Server
	controller *failover.Controller
	promoter   *promote.Promoter
	probers    map[string]*health.Prober
	certs      *certs.Keeper    // nil if clients are spoken to without TLS
	verifiers  *verifier.Source // nil if the server authenticates clients
	admin      *admin.Server    // nil if there is none

	clients, http net.Listener
	observe       func(cluster.Observation) // set by run, before any prober runs
}

// newInstance takes the record and the ports. It talks to members only if it has
// to compare certificates with theirs.
func newInstance(cfg *config.Config, log *slog.Logger) (_ *instance, err error) {
	i := &instance{config: cfg, log: log, probers: map[string]*health.Prober{}}
	defer func() {
		if err != nil {
			i.close()
		}
	}()
	if i.record, err = lease.OpenFile(cfg.Record); err != nil {
		return nil, err
	}
	if i.clients, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w: is another program on that port? see --listen", err)
	}
	if cfg.Admin != "" {
		if i.http, err = net.Listen("tcp", cfg.Admin); err != nil {
			return nil, fmt.Errorf("admin: %w: is another program on that port? see --admin", err)
		}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err = i.join(reg); err != nil {
		return nil, err
	}
	if i.certs != nil {
		_, ours := i.certs.ForConnection()
		if err = checkCertificates(context.Background(), cfg, ours); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// join makes everyone and introduces them.
func (i *instance) join(reg *prometheus.Registry) error {
	cfg := i.config
	sessions := tcp.Options{KeepAlive: cfg.TCPKeepalive, UserTimeout: cfg.TCPUserTimeout}
	// Our own connections need no patience: what is not acknowledged within the
	// time for an answer is a miss anyway.
	own := tcp.Options{KeepAlive: cfg.TCPKeepalive, UserTimeout: max(cfg.Timeout, time.Second)}

	var names []string
	conns := map[string]*pgconn.Config{}
	timing := health.Timing{Interval: cfg.Interval, Timeout: cfg.Timeout, Retry: cfg.RetryInterval, Threshold: cfg.Threshold}
	probes := health.NewMetrics(reg)
	for _, m := range cfg.Members {
		conn := m.Conn.Copy()
		conn.DialFunc = own.Dialer().DialContext
		names = append(names, m.Name)
		conns[m.Name] = conn
		i.probers[m.Name] = health.New(m.Name, conn, timing, func(o cluster.Observation) { i.observe(o) }, probes)
	}
	i.router = proxy.NewRouter(proxy.RouterOptions{
		ReleaseRate: cfg.ReleaseRate,
		OnDoubt:     func(member string) { i.probers[member].Nudge() },
		Log:         i.log,
	})
	i.promoter = promote.New(conns, promote.Options{MaxSettle: maxSettle}, i.log)
	var err error
	i.controller, err = failover.NewController(failover.Options{
		Policy: failover.Policy{
			Threshold: cfg.Threshold, StartTimeout: cfg.StartTimeout, MaxLagBytes: cfg.MaxLagBytes,
			DrainTimeout: cfg.DrainTimeout, PromoteTimeout: cfg.PromoteTimeout,
			FenceCommand: cfg.FenceCommand != "", RetryEvery: retryEvery, SeenEvery: seenEvery, FirstLook: firstLook, ErrorTimeout: errorTimeout,
		},
		Members: names, Store: i.record, Route: i.router,
		Hands:        hands{i.promoter, cfg.FenceCommand},
		NotYet:       notYet,
		Refused:      refused,
		Look:         func(member string) { i.probers[member].Nudge() },
		FenceTimeout: cfg.FenceTimeout,
		Log:          i.log,
		Metrics:      failover.NewMetrics(reg),
	})
	if err != nil {
		return err
	}
	opts, err := i.sessionOptions(conns)
	if err != nil {
		return err
	}
	opts.TCP = sessions
	i.server = proxy.New(i.router, opts, i.log, reg)
	if i.http != nil {
		i.admin = admin.New(admin.Options{Status: i.status, Sessions: i.sessions, Gatherer: reg, Log: i.log})
	}
	return nil
}

// close gives back what newInstance took.
func (i *instance) close() {
	if i.clients != nil {
		i.clients.Close()
	}
	if i.http != nil {
		i.http.Close()
	}
	if i.verifiers != nil {
		i.verifiers.Close()
	}
	if i.record != nil {
		i.record.Close()
	}
}

// run serves until ctx ends: then no new client is accepted, sessions may
// finish until shutdown_timeout, and run returns nil. A failover goes on
// meanwhile. When abort ends, everything does at once.
func (i *instance) run(ctx, abort context.Context) error {
	defer i.close()
	// The control outlives the sessions, so that they are looked after to the
	// end.
	control, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(errStopped)
	failed := make(chan error, 3)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer i.promoter.Close()
	defer stop(errStopped)

	i.observe = func(o cluster.Observation) { i.controller.Observe(control, o) }
	wg.Go(func() { i.controller.Run(control) })
	for _, p := range i.probers {
		wg.Go(func() { p.Run(control) })
	}
	wg.Go(func() {
		if err := i.server.Serve(i.clients); !errors.Is(err, proxy.ErrServerClosed) {
			failed <- fmt.Errorf("serve clients: %w", err)
		}
	})
	if i.admin != nil {
		wg.Go(func() {
			if err := i.admin.Serve(i.http); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve admin: %w", err)
			}
		})
		defer i.stopAdmin()
	}

	select {
	case err := <-failed:
		i.server.Close()
		return err
	case <-ctx.Done():
	}
	i.log.Info("shutting down: no new clients; sessions may finish", "open", i.server.Stats().Open, "at_most", i.config.ShutdownTimeout)
	grace, cancel := context.WithTimeout(abort, i.config.ShutdownTimeout)
	defer cancel()
	if err := i.server.Shutdown(grace); err != nil {
		i.log.Warn("sessions ended before they had finished", "cause", err)
	}
	return nil
}

func (i *instance) stopAdmin() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	i.admin.Shutdown(ctx)
}

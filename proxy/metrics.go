package proxy

import "github.com/prometheus/client_golang/prometheus"

// metrics counts sessions.
type metrics struct {
	refused *prometheus.CounterVec
	ended   *prometheus.CounterVec
	hold    prometheus.Histogram
	cancels *prometheus.CounterVec
	told    *prometheus.CounterVec
	retries prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgfailproxy_connections_refused_total", Help: "Client connections that were answered with an error of the proxy, by reason.",
		}, []string{"reason"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgfailproxy_sessions_ended_total", Help: "Sessions that ended, by why.",
		}, []string{"cause"}),
		hold: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pgfailproxy_hold_seconds", Help: "Time that clients waited for a primary.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		cancels: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgfailproxy_cancel_requests_total", Help: "Cancel requests, by what became of them.",
		}, []string{"result"}),
	}
	m.told = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pgfailproxy_farewells_total", Help: "Sessions that the proxy ended, by the SQLSTATE that the client was told, or cut: in the middle of a message nothing can be said.",
	}, []string{"sqlstate"})
	m.retries = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "pgfailproxy_server_attempts_failed_total", Help: "Attempts to have a server take a session that failed before anything was executed; each is made again.",
	})
	// A series that begins with its first event hides that event from rate().
	for vec, labels := range map[*prometheus.CounterVec][]string{
		m.refused: {"certificate", "client_hba", "login_timeout", "no_primary", "no_tls", "password", "protocol", "server_login", "server_lost",
			"shutting_down", "tls_handshake", "too_many_clients", "verifier"},
		m.ended:   {"error", "failover", "finished", "idle", "server_lost", "shutdown"},
		m.cancels: {"forwarded", "idle", "no_primary", "unreachable", "wrong_key"},
		m.told:    {codeSessionLost, codeRolledBack, codeInDoubt, codeIdle, "cut"},
	} {
		for _, label := range labels {
			vec.WithLabelValues(label)
		}
	}
	gauge := func(name, help string, value func() int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	counter := func(name, help string, labels prometheus.Labels, value func() int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return float64(value()) })
	}
	reg.MustRegister(m.refused, m.ended, m.hold, m.cancels, m.told, m.retries,
		gauge("pgfailproxy_connections_open", "Client connections, held ones among them.", s.open.Load),
		gauge("pgfailproxy_connections_held", "Client connections that wait for a primary.", s.held.Load),
		counter("pgfailproxy_connections_total", "Client connections accepted.", nil, s.total.Load),
		counter("pgfailproxy_relayed_bytes_total", "Bytes relayed, by who sent them.", prometheus.Labels{"from": "client"}, func() int64 { n, _ := s.mover.Moved(); return n }),
		counter("pgfailproxy_relayed_bytes_total", "Bytes relayed, by who sent them.", prometheus.Labels{"from": "server"}, func() int64 { _, n := s.mover.Moved(); return n }),
	)
	return m
}

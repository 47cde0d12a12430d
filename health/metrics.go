package health

import (
	"github.com/prometheus/client_golang/prometheus"

	"pgfailproxy/cluster"
)

// Metrics counts the probes of all members.
type Metrics struct {
	probes  *prometheus.CounterVec
	misses  *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// NewMetrics registers with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgfailproxy_probes_total",
			Help: "Probes of members, by how the member took them.",
		}, []string{"member", "reach"}),
		misses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgfailproxy_probe_misses_total",
			Help: "Probes of members that count towards the threshold of misses.",
		}, []string{"member"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "pgfailproxy_probe_seconds",
			Help:    "Time from question to answer of answered probes.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"member"}),
	}
	reg.MustRegister(m.probes, m.misses, m.seconds)
	return m
}

func (m *Metrics) observe(o cluster.Observation) {
	if m == nil {
		return
	}
	m.probes.WithLabelValues(o.Member, o.Reach.String()).Inc()
	if o.Reach.Miss() {
		m.misses.WithLabelValues(o.Member).Inc()
	}
	if o.Healthy() {
		m.seconds.WithLabelValues(o.Member).Observe(o.Took.Seconds())
	}
}

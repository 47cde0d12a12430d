package failover

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics shows the state and the failovers.
type Metrics struct {
	state       *prometheus.GaugeVec
	epoch       prometheus.Gauge
	timeline    prometheus.Gauge
	failovers   *prometheus.CounterVec
	bytesAtRisk prometheus.Counter
	phases      *prometheus.HistogramVec
	seconds     prometheus.Histogram
}

// states are all states, for a gauge that is 1 for the present one.
var states = []State{Starting, Serving, Suspecting, Holding, Draining, Promoting, Halted}

// NewMetrics registers with reg.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	buckets := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	m := &Metrics{
		state: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "pgfailproxy_state", Help: "1 for the present state, 0 for the others.",
		}, []string{"state"}),
		epoch: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgfailproxy_epoch", Help: "Epoch of the record; it grows when a primary is given up.",
		}),
		timeline: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "pgfailproxy_timeline", Help: "Timeline of the record's primary.",
		}),
		failovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pgfailproxy_failovers_total", Help: "Failovers that ended, by what became of acknowledged commits.",
		}, []string{"verdict"}),
		bytesAtRisk: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pgfailproxy_failover_at_risk_bytes_total", Help: "WAL seen on given-up primaries that their successors lack, in all failovers.",
		}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pgfailproxy_failover_phase_seconds", Help: "Time that each phase of a failover took.", Buckets: buckets,
		}, []string{"phase"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pgfailproxy_failover_seconds", Help: "Time from the first sign of trouble to the open route.", Buckets: buckets,
		}),
	}
	reg.MustRegister(m.state, m.epoch, m.timeline, m.failovers, m.bytesAtRisk, m.phases, m.seconds)
	for _, v := range []Verdict{VerdictZero, VerdictUnknown, VerdictAtRisk} {
		m.failovers.WithLabelValues(string(v))
	}
	return m
}

func (m *Metrics) set(s *Status) {
	for _, state := range states {
		value := 0.0
		if state == s.State {
			value = 1
		}
		m.state.WithLabelValues(string(state)).Set(value)
	}
	m.epoch.Set(float64(s.Record.Epoch))
	m.timeline.Set(float64(s.Record.Timeline))
}

func (m *Metrics) failover(r Report) {
	m.failovers.WithLabelValues(string(r.Verdict)).Inc()
	m.bytesAtRisk.Add(float64(r.BytesAtRisk))
	for _, p := range r.Phases {
		m.phases.WithLabelValues(p.Name).Observe(p.Took.Seconds())
	}
	m.seconds.Observe(r.Took().Seconds())
}

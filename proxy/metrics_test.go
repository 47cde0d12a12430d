package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// gather returns what reg shows, as name{labels} to value; of a histogram its
// count and sum.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += fmt.Sprintf("{%s=%s}", l.GetName(), l.GetValue())
			}
			if h := m.GetHistogram(); h != nil {
				all[name+" count"], all[name+" sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
				continue
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

// A day in the life of a proxy, and every number that it leaves.
func TestTheMetricsTellWhatHappened(t *testing.T) {
	inBubble(t, func(o *Options, _ *RouterOptions) { o.MaxClients = 3 }, func(b *bubble) {
		waited := b.connect()
		time.Sleep(2 * time.Second)
		b.verify()
		waited.wantServed() // 4 bytes each way; what comes before them is not relayed
		finished := b.connect()
		finished.wantServed()
		finished.Close()
		garbage := b.dial()
		garbage.send([]byte("GET / HTTP/1.1\r\n\r\n"))
		garbage.wantFatal("08P01", "")
		synctest.Wait() // there is room for one more
		cancel := b.dial()
		cancel.send(append([]byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e}, make([]byte, 8)...))
		cancel.wantEnd()
		b.net.Refuse("pg1", true)
		held := b.connect()
		time.Sleep(time.Millisecond)
		b.giveUp()
		waited.wantEnd()
		also := b.connect()
		synctest.Wait()
		third := b.connect()
		synctest.Wait()
		b.connect().wantFatal("53300", "")

		got := gather(t, b.metrics)
		want := map[string]float64{
			"pgfailproxy_connections_open":                                   3,
			"pgfailproxy_connections_held":                                   3,
			"pgfailproxy_connections_total":                                  8,
			"pgfailproxy_relayed_bytes_total{from=client}":                   8,
			"pgfailproxy_relayed_bytes_total{from=server}":                   26, // two answers to a start-up, too
			"pgfailproxy_server_attempts_failed_total":                       2,  // at once, and as one that waits
			"pgfailproxy_hold_seconds count":                                 1,
			"pgfailproxy_hold_seconds sum":                                   2,
			"pgfailproxy_cancel_requests_total{result=forwarded}":            1,
			"pgfailproxy_cancel_requests_total{result=no_primary}":           0,
			"pgfailproxy_cancel_requests_total{result=unreachable}":          0,
			"pgfailproxy_sessions_ended_total{cause=failover}":               1,
			"pgfailproxy_sessions_ended_total{cause=finished}":               2,
			"pgfailproxy_sessions_ended_total{cause=error}":                  1,
			"pgfailproxy_sessions_ended_total{cause=shutdown}":               0,
			"pgfailproxy_connections_refused_total{reason=no_primary}":       0,
			"pgfailproxy_connections_refused_total{reason=protocol}":         1,
			"pgfailproxy_connections_refused_total{reason=shutting_down}":    0,
			"pgfailproxy_connections_refused_total{reason=login_timeout}":    0,
			"pgfailproxy_connections_refused_total{reason=certificate}":      0,
			"pgfailproxy_connections_refused_total{reason=client_hba}":       0,
			"pgfailproxy_connections_refused_total{reason=no_tls}":           0,
			"pgfailproxy_connections_refused_total{reason=password}":         0,
			"pgfailproxy_connections_refused_total{reason=server_login}":     0,
			"pgfailproxy_connections_refused_total{reason=server_lost}":      0,
			"pgfailproxy_connections_refused_total{reason=tls_handshake}":    0,
			"pgfailproxy_connections_refused_total{reason=verifier}":         0,
			"pgfailproxy_cancel_requests_total{result=idle}":                 0,
			"pgfailproxy_cancel_requests_total{result=wrong_key}":            0,
			"pgfailproxy_sessions_ended_total{cause=idle}":                   0,
			"pgfailproxy_sessions_ended_total{cause=server_lost}":            0,
			"pgfailproxy_farewells_total{sqlstate=57P01}":                    0,
			"pgfailproxy_farewells_total{sqlstate=40001}":                    0,
			"pgfailproxy_farewells_total{sqlstate=08007}":                    0,
			"pgfailproxy_farewells_total{sqlstate=57P05}":                    0,
			"pgfailproxy_farewells_total{sqlstate=cut}":                      0,
			"pgfailproxy_connections_refused_total{reason=too_many_clients}": 1,
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if value, ok := got[name]; !ok || value != want[name] {
				t.Errorf("%s is %v (there: %v), want %v", name, value, ok, want[name])
			}
		}
		for name := range got {
			if _, ok := want[name]; !ok {
				t.Errorf("%s is new: say here what it should be", name)
			}
			if !strings.HasPrefix(name, "pgfailproxy_") {
				t.Errorf("%s does not begin with the program's name", name)
			}
		}
		for _, c := range []*client{held, also, third} {
			c.Close()
		}
	})
}

package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pgfailproxy/cluster"
)

var (
	errKilled = errors.New("the proxy was killed")
	errNotYet = errors.New("not yet")
	errDenied = errors.New("permission denied")
)

// scene is a primary that is dead, a standby that can be promoted, a disk and a
// route, all in memory. It outlives the controllers that play in it.
type scene struct {
	mu       sync.Mutex
	record   cluster.Record
	promoted bool
	calls    []string
	open     string // where a session would go
	epochs   map[cluster.Epoch]string

	// kill ends the controller at the call of that number: before it has an
	// effect or after.
	kill   int
	after  bool
	cancel context.CancelCauseFunc
	slow   map[Step]int // how often a step says "not yet"
	denied bool         // the fence lacks a privilege
}

// call notes a call. It returns an error when the controller is killed before
// the call has its effect, and says whether to kill it afterwards.
func (s *scene) call(name string) (kill func(), err error) {
	s.calls = append(s.calls, name)
	if len(s.calls) != s.kill {
		return func() {}, nil
	}
	if !s.after {
		s.cancel(errKilled)
		return nil, errKilled
	}
	return func() { s.cancel(errKilled) }, nil
}

func (s *scene) Record() cluster.Record { s.mu.Lock(); defer s.mu.Unlock(); return s.record }

func (s *scene) Store(r cluster.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	kill, err := s.call(fmt.Sprintf("store %s", r))
	if err != nil {
		return err
	}
	defer kill()
	s.record = r
	return nil
}

func (s *scene) step(step Step, effect func()) error {
	time.Sleep(10 * time.Millisecond) // in a bubble
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slow[step] > 0 {
		s.slow[step]--
		return errNotYet
	}
	kill, err := s.call(string(step))
	if err != nil {
		return err
	}
	defer kill()
	effect()
	return nil
}

func (s *scene) Fence(context.Context, string) error {
	err := s.step(StepFence, func() {})
	if err == nil && s.denied {
		return errDenied
	}
	return err
}
func (s *scene) Unfence(context.Context, string) error { return s.step(StepUnfence, func() {}) }
func (s *scene) Drain(context.Context, string) (cluster.Position, error) {
	return cluster.Position{Timeline: 1, LSN: 1000}, s.step(StepDrain, func() {})
}
func (s *scene) FenceCommand(context.Context, cluster.Record) error {
	return s.step(StepFenceCommand, func() {})
}
func (s *scene) Promote(context.Context, string) error {
	return s.step(StepPromote, func() { s.promoted = true })
}
func (s *scene) Verify(_ context.Context, member string, _ cluster.Record) (cluster.Observation, error) {
	err := s.step(StepVerify, func() {})
	return s.standby(), err
}
func (s *scene) Release() {}

func (s *scene) Apply(r cluster.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Held {
		s.open = ""
	}
}
func (s *scene) Open(e cluster.Epoch, a cluster.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = a.Address
	if other := s.epochs[e]; other != "" && other != a.Address {
		panic(fmt.Sprintf("epoch %d: %s and %s", e, other, a.Address))
	}
	s.epochs[e] = a.Address
}
func (s *scene) Suspend() { s.mu.Lock(); defer s.mu.Unlock(); s.open = "" }

func (s *scene) standby() cluster.Observation {
	o := cluster.Observation{Member: "pg2", Asked: time.Now(), Reach: cluster.ReachAnswered, Role: cluster.RoleStandby, System: 7,
		Position: cluster.Position{Timeline: 1, LSN: 1000}, Addr: cluster.Addr{Network: "tcp", Address: "pg2"}}
	if s.promoted {
		o.Role, o.Position = cluster.RolePrimary, cluster.Position{Timeline: 2, LSN: 1100}
	}
	return o
}

// play runs a controller until it serves or is killed.
func (s *scene) play(t *testing.T, log *strings.Builder) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	s.open = ""
	c, err := NewController(Options{
		Policy: testPolicy, Members: []string{"pg1", "pg2"}, Store: s, Hands: s, Route: s,
		NotYet:       func(err error) bool { return errors.Is(err, errNotYet) },
		Refused:      func(err error) bool { return errors.Is(err, errDenied) },
		Look:         func(string) {},
		FenceTimeout: time.Second, Log: slog.New(slog.NewTextHandler(log, nil)),
		Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { c.Run(ctx) })
	for range 200 {
		c.Observe(ctx, cluster.Observation{Member: "pg1", Asked: time.Now(), Reach: cluster.ReachRefused, Err: "connection refused"})
		s.mu.Lock()
		o := s.standby()
		s.mu.Unlock()
		c.Observe(ctx, o)
		time.Sleep(100 * time.Millisecond)
		if ctx.Err() != nil || c.Status().State == Serving {
			return
		}
	}
	t.Fatalf("not serving after 20 s: %+v\n%s", c.Status(), log.String())
}

func newScene() *scene {
	return &scene{epochs: map[cluster.Epoch]string{}, slow: map[Step]int{}, record: cluster.Record{
		Revision: 1, Epoch: 1, System: 7, Timeline: 1, Primary: "pg1", Seen: cluster.Position{Timeline: 1, LSN: 1000}}}
}

func TestControllerCarriesAFailoverOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene()
		s.slow[StepDrain], s.slow[StepPromote] = 3, 3
		s.denied = true
		var log strings.Builder
		s.play(t, &log)
		want := []string{
			"store epoch 2, timeline 1, primary pg1 given up", "fence", "drain",
			"store epoch 2, timeline 1, primary pg1 given up, candidate pg2", "promote", "verify",
			"store epoch 2, timeline 2, primary pg2",
		}
		if !slices.Equal(s.calls, want) {
			t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(s.calls, "\n"), strings.Join(want, "\n"))
		}
		if s.open != "pg2" {
			t.Errorf("sessions go to %q", s.open)
		}
		for _, text := range []string{"permission denied", "failover report", "took_promote"} {
			if !strings.Contains(log.String(), text) {
				t.Errorf("the log does not say %q:\n%s", text, log.String())
			}
		}
	})
}

// However far a failover had got when the proxy was killed, the next start ends
// with one primary, a true record and an open route.
func TestKilledAtEveryCallAndStartedAgain(t *testing.T) {
	for kill := 1; ; kill++ {
		reached := false
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("call %d, after %v", kill, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newScene()
					s.kill, s.after = kill, after
					var log strings.Builder
					s.play(t, &log)
					reached = len(s.calls) >= kill
					log.WriteString("-- started again\n")
					s.play(t, &log)
					if s.open != "pg2" || s.record.Primary != "pg2" || s.record.Held || s.record.Timeline != 2 || s.record.Epoch != 2 || !s.promoted {
						t.Fatalf("open %q, record %s, promoted %v\n%s", s.open, s.record, s.promoted, log.String())
					}
				})
			})
		}
		if !reached {
			if kill < 7 {
				t.Fatalf("a failover has only %d calls", kill-1)
			}
			return
		}
	}
}

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/admin"
	"pgfailproxy/e2e/stack"
)

func TestFiftyClientsThatComeWhileThereIsNoPrimaryAreServed(t *testing.T) {
	w := newWorld(t)
	w.sql("pg1", "CREATE TABLE came (n int)")
	w.poll(func() error { return same(w.sql("pg2", "SELECT to_regclass('came') IS NOT NULL"), "t") })
	w.fault(w.Pause, "pg1")
	w.await("nobody is served", func(s admin.Status) bool { return !s.Served() })
	var out string
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		out, err = w.bash("pg2", `for i in $(seq 50); do
			psql -Xq -h proxy -p 6432 -U postgres -c "INSERT INTO came VALUES ($i)" & pids="$pids $!"
		done
		for pid in $pids; do wait $pid || failed=1; done
		exit ${failed:-0}`)
	})
	held := w.await("some wait", func(s admin.Status) bool { return s.Sessions.Held > 0 })
	if held.Served() {
		t.Error("sessions wait, and a primary is served")
	}
	wg.Wait()
	if err != nil {
		t.Errorf("not all exited with 0: %v\n%s", err, out)
	}
	if err := same(w.sql("pg2", "SELECT count(DISTINCT n), count(*) FROM came"), "50|50"); err != nil {
		t.Errorf("rows: %v", err)
	}
}

// What needs no fault shares one world.
func TestClientsOfEveryKind(t *testing.T) {
	w := newWorld(t)
	run := func(name string, f func(*world)) {
		t.Run(name, func(t *testing.T) { f(&world{w.Stack, t, w.ctx}) })
	}
	run("psql without TLS on the server", (*world).psqlWithoutTLS)
	run("psql cancels a query, with protocols 3.0 and 3.2", (*world).psqlCancels)
	run("pgx cancels a query", (*world).pgxCancels)
	run("status, metrics and health checks answer", (*world).adminAnswers)
	run("check finds nothing wrong", (*world).checkIsContent)
	run("psql with TLS, end to end", (*world).psqlWithTLS)
	run("the proxy is stopped and lets a query finish", (*world).stopLetsFinish)
}

// psql returns a script's line that runs psql through the port.
func psql(connection, command string) string {
	return fmt.Sprintf(`psql -XAtq "host=proxy port=6432 user=postgres dbname=postgres %s" -c "%s"`, connection, command)
}

func (w *world) psqlWithoutTLS() {
	for _, c := range []string{"", "sslmode=prefer", "sslmode=allow", "sslmode=disable", "gssencmode=prefer sslmode=prefer",
		"max_protocol_version=3.2", "min_protocol_version=3.2 max_protocol_version=latest", "channel_binding=disable"} {
		out, err := w.bash("pg2", psql(c, whereAmI))
		if err != nil || out != "pg1" {
			w.t.Errorf("psql %q: %q, %v", c, out, err)
		}
	}
	out, err := w.bash("pg2", psql("sslmode=require", "SELECT 1"))
	if err == nil || !strings.Contains(out, "server does not support SSL") {
		w.t.Errorf("TLS required of a server that has none: %q, %v", out, err)
	}
}

func (w *world) psqlCancels() {
	for _, protocol := range []string{"3.0", "3.2"} {
		// Its end is Ctrl-C, as soon as the server is at work on its query.
		out, err := w.bash("pg2", psql("max_protocol_version="+protocol, `\conninfo`)+"\n"+
			psql("max_protocol_version="+protocol+" application_name=cancelled", "SELECT pg_sleep(60)")+` &
			until [ "$(`+psql("", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cancelled' AND state = 'active'")+`)" = 1 ]; do sleep 0.05; done
			kill -INT $!; wait $!`)
		if err == nil || !strings.Contains(out, "canceling statement due to user request") {
			w.t.Errorf("protocol %s: %q, %v", protocol, out, err)
		}
		if !strings.Contains(out, protocol) {
			w.t.Errorf("the protocol is not %s: %s", protocol, out)
		}
	}
}

func (w *world) pgxCancels() {
	conn := w.connect()
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(w.ctx, "SELECT pg_sleep(60)")
		done <- err
	}()
	w.poll(func() error {
		return same(w.sql("pg1", fmt.Sprintf("SELECT state || wait_event FROM pg_stat_activity WHERE pid = %d", conn.PgConn().PID())), "activePgSleep")
	})
	w.must(conn.PgConn().CancelRequest(w.ctx))
	var refused *pgconn.PgError
	if err := <-done; !errors.As(err, &refused) || refused.Code != "57014" {
		w.t.Errorf("the query ended with %v, want SQLSTATE 57014", err)
	}
	if _, err := conn.Exec(w.ctx, "SELECT 1"); err != nil {
		w.t.Errorf("the session afterwards: %v", err)
	}
}

func (w *world) adminAnswers() {
	get := func(path string) (int, string) {
		w.t.Helper()
		resp, err := http.Get("http://" + w.Admin() + path)
		w.must(err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		w.must(err)
		return resp.StatusCode, string(body)
	}
	for path, code := range map[string]int{"/": 200, "/healthz": 200, "/readyz": 200, "/primary": 200,
		"/primary/pg1": 200, "/primary/pg2": 503, "/replica/pg2": 200, "/replica/pg1": 503, "/primary/pg3": 404} {
		if got, body := get(path); got != code {
			w.t.Errorf("%s: %d, want %d: %.200s", path, got, code, body)
		}
	}
	_, metrics := get("/metrics")
	for _, name := range []string{"pgfailproxy_", "go_goroutines", "process_cpu_seconds_total"} {
		if !strings.Contains(metrics, "\n"+name) {
			w.t.Errorf("no metric %s...", name)
		}
	}
	_, page := get("/")
	_, status := get("/status")
	for name, text := range map[string]string{"/": page, "/status": status, "/metrics": metrics} {
		for _, secret := range []string{`pr"o\xy`, `p'r`, "p&#39;r", "$1 #"} {
			if strings.Contains(text, secret) {
				w.t.Errorf("%s shows a password", name)
			}
		}
	}
	out, err := w.Run(w.ctx, stack.Proxy, "", "pgfailproxy", "status")
	if err != nil || !strings.Contains(out, "pg2") {
		w.t.Errorf("pgfailproxy status: %q, %v", out, err)
	}
}

// checkIsContent proves that the roles and settings of docker-compose.yml are
// what the proxy needs.
func (w *world) checkIsContent() {
	out, err := w.Run(w.ctx, stack.Proxy, "", "pgfailproxy", "check", "--config", "/etc/pgfailproxy.yaml")
	if err != nil {
		w.t.Errorf("check: %v\n%s", err, out)
	}
	w.t.Log(out)
}

// psqlWithTLS gives the server a certificate and looks whether TLS passes
// through: the server itself says so.
func (w *world) psqlWithTLS() {
	w.must(w.Configure(w.ctx, "sessions: passthrough"))
	defer func() { w.must(w.Configure(w.ctx, "")) }()
	w.must(w.giveCertificate("pg1"))
	w.sql("pg1", "ALTER SYSTEM SET ssl = on")
	w.sql("pg1", "SELECT pg_reload_conf()")
	const inside = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
	w.poll(func() error {
		out, err := w.bash("pg2", psql("sslmode=prefer", inside))
		return errors.Join(same(out, "t"), err)
	})
	for c, want := range map[string]string{"sslmode=require": "t", "sslmode=require sslnegotiation=direct": "t",
		"sslmode=require channel_binding=require": "t", "sslmode=require max_protocol_version=3.2": "t", "sslmode=disable": "f"} {
		out, err := w.bash("pg2", psql(c, inside))
		if err != nil || out != want {
			w.t.Errorf("psql %q: %q, %v; want %s", c, out, err, want)
		}
	}
}

// giveCertificate writes a key and a certificate into a member's data folder.
func (w *world) giveCertificate(member string) error {
	cert, key, err := selfSigned(member)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"server.crt": cert, "server.key": key} {
		script := `install -o postgres -m 600 /dev/stdin "$PGDATA/` + name + `"`
		if _, err := w.Run(w.ctx, member, string(content), "sh", "-c", script); err != nil {
			return err
		}
	}
	return nil
}

// selfSigned makes a certificate for names and addresses, and its key, both PEM.
// It is its own authority.
func selfSigned(names ...string) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

func (w *world) stopLetsFinish() {
	conn := w.connect()
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(w.ctx, "SELECT pg_sleep(2)")
		done <- err
	}()
	w.poll(func() error {
		return same(w.sql("pg1", fmt.Sprintf("SELECT state || wait_event FROM pg_stat_activity WHERE pid = %d", conn.PgConn().PID())), "activePgSleep")
	})
	closed := make(chan struct{})
	go func() { // the client leaves when its query has ended
		defer close(closed)
		if err := <-done; err != nil {
			w.t.Errorf("the query that was under way: %v", err)
		}
		conn.Close(w.ctx)
	}()
	w.fault(w.Stop, stack.Proxy)
	<-closed
	if code, err := w.ExitCode(w.ctx, stack.Proxy); err != nil || code != 0 {
		w.t.Errorf("the proxy exited with %d, %v", code, err)
	}
	w.fault(w.Start, stack.Proxy)
	w.isTrue(w.await("a primary is served", admin.Status.Served), "pg1", 1)
}

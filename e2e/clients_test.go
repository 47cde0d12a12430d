package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgfailproxy/e2e/stack"
)

// column is one configuration of the proxy that real clients are tried with.
type column struct {
	name     string
	settings string // of the proxy, beside those of docker-compose.yml
	tls      bool   // the proxy shows clients a certificate
	binding  bool   // a login can be bound to that certificate
	smoke    bool   // psql is enough
}

var columns = []column{
	{name: "no TLS, auth relay"},
	{name: "TLS, auth relay", tls: true},
	{name: "no TLS, auth terminate", settings: "auth: terminate\nclient_hba: [host all all all scram-sha-256, host replication replicator all scram-sha-256]\n"},
	{name: "TLS, auth terminate", tls: true, binding: true, settings: "auth: terminate\nclient_hba: [hostssl all all all scram-sha-256, hostssl replication replicator all scram-sha-256]\n"},
	{name: "passthrough", settings: "sessions: passthrough\n", smoke: true},
}

// client is a driver, and the program in the folder clients that tries it. Each
// prints "ok NAME" or "FAILED NAME: why" for each of its checks.
type client struct {
	name     string
	packages string // Debian's, for who lacks them
	folder   string // within clients
	command  []string
	needs    []string // a command that succeeds where the driver is; nil: Go has it
}

var drivers = []client{
	{name: "pgx", folder: "pgx", command: []string{"go", "run", "."}},
	{name: "psycopg", packages: "python3-psycopg python3-psycopg-pool",
		command: []string{"/usr/bin/python3", "python.py"}, // the one that Debian's packages are for
		needs:   []string{"/usr/bin/python3", "-c", "import psycopg, psycopg_pool"}},
	{name: "node-postgres", packages: "nodejs node-pg",
		command: []string{"node", "node.js"},
		needs:   []string{"node", "-e", "require('pg'), require('pg-cursor')"}},
	{name: "pgjdbc", packages: "default-jdk-headless libpostgresql-jdbc-java libhikaricp-java libslf4j-java",
		command: []string{"java", "-cp", javaPath, "Jdbc.java"},
		needs:   []string{"sh", "-c", "java --list-modules | grep jdk.compiler && ls $(echo " + javaPath + " | tr : ' ')"}},
}

const javaPath = "/usr/share/java/postgresql.jar:/usr/share/java/HikariCP.jar:/usr/share/java/slf4j-api.jar:/usr/share/java/slf4j-nop.jar"

// All share one world; only the proxy is started anew for each column.
func TestRealClients(t *testing.T) {
	w := newWorld(t)
	w.sql("pg1", "CREATE ROLE app LOGIN CREATEDB PASSWORD 'app'; CREATE DATABASE app OWNER app")
	w.setup()
	ca := w.certify()
	for _, c := range columns {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(suite.ctx, 2*time.Minute)
			defer cancel()
			w := &world{w.Stack, t, ctx}
			settings := c.settings
			if c.tls {
				settings += "client_tls_cert: " + stack.ProxyFolder + "tls.crt\nclient_tls_key: " + stack.ProxyFolder + "tls.key\n"
			}
			w.must(w.Configure(w.ctx, settings))
			t.Run("psql", func(t *testing.T) { (&world{w.Stack, t, w.ctx}).tryPrograms(c) })
			for _, d := range drivers {
				if !c.smoke {
					t.Run(d.name, func(t *testing.T) { (&world{w.Stack, t, w.ctx}).try(c, d, ca) })
				}
			}
			if log, err := w.Logs(w.ctx, stack.Proxy, time.Time{}); err != nil || strings.Contains(log, "panic") {
				t.Errorf("the proxy's log, %v:\n%s", err, log)
			}
		})
	}
}

// setup has the proxy install what auth: terminate needs, twice. Before that check
// says that it is missing, and afterwards that all is well.
func (w *world) setup() {
	check := func() (string, error) {
		return w.Run(w.ctx, stack.Proxy, "", "pgfailproxy", "check", "--config", "/etc/pgfailproxy.yaml", "--auth", "terminate", "--client-hba", "host all all all scram-sha-256")
	}
	if out, err := check(); err == nil || !strings.Contains(out, "passwords cannot be looked up on pg1") {
		w.t.Errorf("check before setup: %v\n%s", err, out)
	}
	defer func() {
		if out, err := check(); err != nil || !strings.Contains(out, "passwords can be looked up on pg1") {
			w.t.Errorf("check after setup: %v\n%s", err, out)
		}
	}()
	u, err := url.Parse(w.URL())
	w.must(err)
	password, _ := u.User.Password()
	as := "user=postgres password='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(password) + "'"
	for range 2 {
		out, err := w.Run(w.ctx, stack.Proxy, "", "pgfailproxy", "setup", "--config", "/etc/pgfailproxy.yaml", "--yes", "--superusers", "--as", as)
		if err != nil || !strings.HasSuffix(strings.TrimSpace(out), "done") {
			w.t.Fatalf("setup: %v\n%s", err, out)
		}
	}
}

// environ is libpq's environment for who connects to host and port.
func (c column) environ(host, port, ca string) []string {
	env := []string{"PGHOST=" + host, "PGPORT=" + port, "PGUSER=app", "PGPASSWORD=app", "PGDATABASE=app", "PGSSLMODE=disable"}
	if c.tls {
		env = append(env, "PGSSLMODE=verify-full", "PGSSLROOTCERT="+ca, "TLS=1")
	}
	if c.binding {
		env = append(env, "BINDING=1")
	}
	return env
}

// tryPrograms tries PostgreSQL's own programs, in the container of a member.
func (w *world) tryPrograms(c column) {
	script, err := os.ReadFile("clients/psql.sh")
	w.must(err)
	command := append([]string{"env"}, c.environ(stack.Proxy, "6432", memberCA)...)
	out, err := w.Run(w.ctx, "pg2", "", append(command, "bash", "-c", string(script))...)
	w.read(out, err)
}

// try tries a driver on this machine.
func (w *world) try(c column, d client, ca string) {
	w.find(d)
	u, err := url.Parse(w.URL())
	w.must(err)
	cmd := d.run(w.ctx, d.command)
	cmd.Env = append(cmd.Env, c.environ(u.Hostname(), u.Port(), ca)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, said.String())
	}
	w.read(string(out), err)
}

func (d client) run(ctx context.Context, command []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = filepath.Join("clients", d.folder)
	cmd.Env = append(os.Environ(), "NODE_PATH=/usr/local/share/nodejs:/usr/share/nodejs")
	return cmd
}

// find skips the test where the driver is not installed; CI has every one.
func (w *world) find(d client) {
	if d.needs == nil {
		return
	}
	if out, err := d.run(w.ctx, d.needs).CombinedOutput(); err != nil {
		text := fmt.Sprintf("%s was not found: install Debian's packages %s: %s", d.name, d.packages, out)
		if os.Getenv("CI") == "true" {
			w.t.Fatal(text)
		}
		w.t.Skip(text)
	}
}

// read reads what a program printed of its checks.
func (w *world) read(out string, err error) {
	passed, failed := 0, 0
	for line := range strings.Lines(out) {
		if _, ok := strings.CutPrefix(line, "ok "); ok {
			passed++
		} else {
			failed++
			w.t.Error(strings.TrimSpace(line))
		}
	}
	switch {
	case err != nil && failed == 0:
		w.t.Error(err)
	case passed == 0:
		w.t.Error("nothing was checked")
	}
	w.t.Logf("%d checks passed", passed)
}

// memberCA is where a member's container has the certificate of the proxy.
const memberCA = "/tmp/proxy.crt"

// certify gives the proxy a certificate, which is its own authority, and returns
// where clients on this machine find that.
func (w *world) certify() string {
	cert, key, err := selfSigned(stack.Proxy, "localhost", "127.0.0.1")
	w.must(err)
	w.must(w.Give(w.ctx, "tls.crt", cert))
	w.must(w.Give(w.ctx, "tls.key", key))
	_, err = w.Run(w.ctx, "pg2", string(cert), "sh", "-c", "cat >"+memberCA)
	w.must(err)
	file := filepath.Join(w.t.TempDir(), "proxy.crt")
	w.must(os.WriteFile(file, cert, 0o644))
	return file
}

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConnectionStringsOfEveryForm(t *testing.T) {
	for text, want := range map[string]string{
		"host=db1 user=u dbname=d":                       "db1:5432 user=u dbname=d",
		"host='db1' port=5470 user=u":                    "db1:5470 user=u dbname=u",
		"postgres://u:p%40ss@db1:5470/d?sslmode=disable": "db1:5470 user=u dbname=d",
		"postgresql://u@[::1]:5432":                      "[::1]:5432 user=u dbname=u",
		"host=/run/postgresql user=u":                    "/run/postgresql/.s.PGSQL.5432 user=u dbname=u",
		"host=db1 user=u sslmode=prefer":                 "db1:5432 user=u dbname=u",
		"host=db1 user=u sslmode=allow connect_timeout=3 options='-c lock_timeout=1s'": "db1:5432 user=u dbname=u",
	} {
		conn, err := parseConn(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := (Member{Name: "m", Conn: conn}).Target(); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestAnApplicationNameIsKept(t *testing.T) {
	conn, err := parseConn("host=db1 application_name=mine")
	if err != nil || conn.RuntimeParams["application_name"] != "mine" {
		t.Errorf("%v %v", conn, err)
	}
}

func TestPasswordsComeFromWhereLibpqFindsThem(t *testing.T) {
	dir := t.TempDir()
	pass := filepath.Join(dir, "pass")
	service := filepath.Join(dir, "service.conf")
	if err := os.WriteFile(pass, []byte("db1:5432:*:u:from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(service, []byte("[main]\nhost=db1\nuser=u\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", pass)
	t.Setenv("PGSERVICEFILE", service)
	conn, err := parseConn("service=main")
	if err != nil || conn.Host != "db1" || conn.Password != "from-file" {
		t.Fatalf("service and password file: %v", err)
	}
	t.Setenv("PGPASSWORD", "from-environment")
	if conn, err = parseConn("service=main"); err != nil || conn.Password != "from-environment" {
		t.Fatalf("PGPASSWORD: %v", err)
	}
}

func TestConnectionStringsThatAreNotOneServerAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"host=a,b":                                         "several hosts: one member is one server",
		"host=a,b sslmode=disable":                         "several hosts",
		"host=a,a port=1,2":                                "several hosts",
		"postgres://u@a:1,b:2/d":                           "several hosts",
		"host=a port=1,2":                                  "several ports",
		"host=a target_session_attrs=read-write":           "target_session_attrs (or PGTARGETSESSIONATTRS) must be any",
		"host=a target_session_attrs=nonsense":             "target_session_attrs must be any",
		"host=a replication=database":                      "must not have the keyword replication",
		"host=a hostaddr=10.0.0.1":                         "the keyword hostaddr of the connection string is not supported",
		"host=a passwrod=s3cret":                           "unknown keyword (did you mean password?)",
		"host=a search_path=x":                             "options='-c name=value'",
		"host=a sslmode=maybe":                             "TLS: sslmode is invalid",
		"host=a sslmode=verify-ca sslrootcert=/no/such.pm": "no such file",
		"host=a service=none":                              "service: ",
		"host=a port=0":                                    "the port is not a number",
		"host=a connect_timeout=x":                         "connect_timeout is not a number of seconds",
		"   ":                                              "the connection string is empty",
	} {
		_, err := parseConn(text)
		refuses(t, err, want)
	}
	t.Setenv("PGHOST", "a,b")
	_, err := parseConn("user=u")
	refuses(t, err, "PGHOST")
}

// broken holds strings in which S stands for a secret.
var broken = []string{
	"host=a password=S x", "host=a password='S", "password=my S host=a", "host=a password=S port=x", "=S",
	"password=S S=x host=a", "password=x S=S host=a", "host=a,b password=S", "host=a password=S sslmode=x", "host=a password=S\x00",
	"host=a password=S replication=true", "host=a password=S target_session_attrs=x", "host = a pass word = S",
	"password=`: failed to configure TLS (S) port=x", "host=a password=S service=none",
	"postgres://u:S@a:x/d", "postgres://u:S", "postgres://u:S/x@a/d", "postgres://u:12/S@a/d", "postgres://u:1?S@a/d",
	"postgres://u:x@S@a/d", "postgres://u:S@[a/d", "postgres://u:%zS@a/d", "postgres://a/d?password=S&port=x",
	"postgres://a/d?pass%77ord=S&port=x", "postgres://u:S#@a:/d:x", "postgres:/u:S@a", "mysql://u:S@a/d", "postgres://u:S@a,b/d",
	"postgres://:S@", "postgres://S@a:99999", "postgres://u:S@a/d?S", "postgres://u:S@a/d?S=S", "postgres://u:1@2:S@a/d",
	"postgres://u:[S@a/d", "jdbc:postgresql://a/d?password=S",
}

func TestNoErrorShowsASecretOfABrokenConnectionString(t *testing.T) {
	const secret = "hunter2secret"
	for _, form := range broken {
		conn := strings.ReplaceAll(form, "S", secret)
		sources := map[string]func() (*Config, error){
			"flag":             func() (*Config, error) { return load(t, nil, "--member=pg1="+conn) },
			"flag, no name":    func() (*Config, error) { return load(t, nil, "--member", conn) },
			"environment":      func() (*Config, error) { return load(t, []string{"PGFAILPROXY_MEMBER_PG1=" + conn}) },
			"file":             func() (*Config, error) { return load(t, nil, "--config", write(t, "members:\n  pg1: "+conn+"\n")) },
			"file, as the key": func() (*Config, error) { return load(t, nil, "--config", write(t, "members:\n  "+conn+": x\n")) },
			"file, no name":    func() (*Config, error) { return load(t, nil, "--config", write(t, "members:\n  "+conn+"\n")) },
			"file, at the top": func() (*Config, error) { return load(t, nil, "--config", write(t, conn+"\n"+conn+": "+conn+"\n")) },
			"file, alias":      func() (*Config, error) { return load(t, nil, "--config", write(t, "members:\n  a: *"+conn+"\n")) },
			"file, tag":        func() (*Config, error) { return load(t, nil, "--config", write(t, "members:\n  a: !!int "+conn+"\n")) },
		}
		for source, try := range sources {
			c, err := try()
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s %q: the error shows it: %s", source, form, err)
			}
			if err == nil && strings.Contains(c.String(), secret) {
				t.Errorf("%s %q: the settings show it: %s", source, form, c)
			}
		}
	}
}

// FuzzConnectionStringsShowNoSecret puts a secret where a password is, and what
// the fuzzer likes around it.
func FuzzConnectionStringsShowNoSecret(f *testing.F) {
	const secret = "hunter2secret"
	f.Add("host=a password=", " port=x")
	f.Add("postgres://u:", "@a/d")
	f.Add("host=a password='", "\\'")
	f.Add("postgres://u:", "/x?port=z@a/d")
	f.Fuzz(func(t *testing.T, before, after string) {
		if _, err := parseConn(before + secret + after); err != nil && strings.Contains(err.Error(), secret) &&
			!strings.Contains(err.Error(), "connection string: service: ") && !strings.Contains(err.Error(), "connection string: TLS: ") {
			t.Errorf("%q, %q: %s", before, after, err)
		}
	})
}

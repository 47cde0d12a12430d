package config

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgfailproxy/hba"
)

// withTLS and terminate are the least that each needs.
var (
	withTLS   = []string{"--client-tls-cert=c.pem", "--client-tls-key=k.pem"}
	terminate = append([]string{"--auth=terminate", "--client-hba=hostssl all all all scram-sha-256"}, withTLS...)
)

func also(base []string, more ...string) []string {
	return append(append([]string{"--member=pg1=" + one}, base...), more...)
}

func TestSettingsForClientsThatCannotWorkTogetherSayWhatToChange(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string // nil: accepted
	}{
		{also(withTLS), nil},
		{also(terminate), nil},
		{also(terminate, "--client-tls-ca=ca.pem", "--client-tls-required", "--client-hba=hostssl all all all cert"), nil},
		{also(nil, "--auth=terminate", "--client-hba=host all all all scram-sha-256"), nil}, // with a warning

		{also(withTLS, "--auth=terminate"), []string{"auth: terminate needs client_hba", "hostssl all all all scram-sha-256"}},
		{also(nil, "--client-hba=host all all all trust"), []string{"client_hba has no effect with auth: relay", "set auth: terminate"}},
		{also(withTLS[:1]), []string{"client_tls_cert needs client_tls_key"}},
		{also(withTLS[1:]), []string{"client_tls_key needs client_tls_cert"}},
		{also(nil, "--client-tls-ca=ca.pem"), []string{"client_tls_ca has no effect without TLS", "set client_tls_cert"}},
		{also(nil, "--client-tls-required"), []string{"client_tls_required needs TLS for clients", "set client_tls_cert"}},
		{also(terminate[:2]), []string{`the rule "hostssl all all all scram-sha-256" needs TLS`, "or write host"}},
		{also(terminate, "--client-hba=hostssl all all all cert"), []string{`the rule "hostssl all all all cert" needs client_tls_ca`}},

		{also(nil, "--sessions=passthrough"), nil},
		{also(terminate, "--sessions=passthrough"), []string{"auth: terminate cannot be with sessions: passthrough", "set sessions: follow"}},
		{also(withTLS, "--sessions=passthrough"), []string{"client_tls_cert cannot be with sessions: passthrough"}},
		{also(nil, "--sessions=passthrough", "--client-tls-min-version=1.3"), []string{"client_tls_min_version cannot be"}},
		{also(nil, "--sessions=passthrough", "--max-role-connections=1"), []string{"max_role_connections cannot be"}},
		{also(nil, "--sessions=passthrough", "--max-database-connections=1"), []string{"max_database_connections cannot be"}},
		{also(nil, "--sessions=passthrough", "--client-idle=1m"), []string{"client_idle cannot be"}},
		{also(nil, "--sessions=passthrough", "--max-client-connections=1"), nil},

		{also(nil, "--client-tls-required=maybe"), []string{`--client-tls-required: "maybe" is neither true nor false`}},
		{also(nil, "--client-tls-min-version=1.1"), []string{`"1.1" is not one of 1.2, 1.3`}},
		{also(nil, "--auth=terminat"), []string{"did you mean terminate?"}},
	} {
		_, err := load(t, nil, tt.args...)
		switch {
		case tt.want != nil:
			refuses(t, err, tt.want...)
		case err != nil:
			t.Errorf("%q: %v", tt.args, err)
		}
	}
}

func TestWhatIsAllowedForClientsAndUnwiseIsSaid(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string // each in one warning of its own
	}{
		{also(nil), nil},
		{also(terminate), nil},
		{also(nil, "--auth=terminate", "--client-hba=host all all all scram-sha-256"), []string{"without TLS for clients"}},
		{also(terminate, "--client-hba=host all all 127.0.0.1 trust"), []string{`"host all all 127.0.0.1/32 trust" lets clients in without a password`}},
		{also(terminate, "--client-tls-required", "--client-hba=hostnossl all all all scram-sha-256"), []string{"never matches, because client_tls_required"}},
	} {
		warnings := mustLoad(t, nil, append(tt.args, "--member=pg2=host=pg2")...).Warnings()
		if len(warnings) != len(tt.want) {
			t.Errorf("%q: warnings %q", tt.args, warnings)
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(warnings[i], want) {
				t.Errorf("%q: %s\nlacks: %s", tt.args, warnings[i], want)
			}
		}
	}
}

// ruled is a file with two rules.
const ruled = "members: {pg1: " + one + `}
auth: terminate
client_hba:
  - host "a;b" all 10.0.0.0/8 scram-sha-256
  # and
  - host all all all reject
`

func TestAListComesWholeFromTheSourceThatGoesFirst(t *testing.T) {
	file := "--config=" + write(t, ruled)
	env := []string{"PGFAILPROXY_CLIENT_HBA=host x all all trust; host y all all trust ;"}
	for _, tt := range []struct {
		env  []string
		args []string
		want string
	}{
		{nil, []string{file}, `[host a;b all 10.0.0.0/8 scram-sha-256 host all all all reject]`},
		{env, []string{file}, "[host x all all trust host y all all trust]"},
		{env, []string{file, "--client-hba=host z all all trust", "--client-hba", "host w all all trust"}, "[host z all all trust host w all all trust]"},
	} {
		if got := fmt.Sprint(mustLoad(t, tt.env, tt.args...).ClientHBA); got != tt.want {
			t.Errorf("%q %q: %s, want %s", tt.env, tt.args, got, tt.want)
		}
	}
	// An empty list is a list: it replaces the file's.
	c := mustLoad(t, []string{"PGFAILPROXY_CLIENT_HBA=", "PGFAILPROXY_AUTH=relay"}, file)
	if len(c.ClientHBA) != 0 {
		t.Errorf("rules %s", c.ClientHBA)
	}
}

func TestRulesOfTheFileAreAskedInTheirOrder(t *testing.T) {
	c := mustLoad(t, nil, "--config="+write(t, ruled))
	client := hba.Client{Addr: netip.MustParseAddr("10.1.1.1"), Database: "a;b", User: "u"}
	if m, ok := c.ClientHBA.Match(client); m != hba.ScramSHA256 || !ok {
		t.Errorf("%s, %v", m, ok)
	}
	if got := fmt.Sprint(c.Public()); !strings.Contains(got, `{client_hba host a;b all 10.0.0.0/8 scram-sha-256; host all all all reject}`) {
		t.Errorf("Public: %s", got)
	}
}

func TestErrorsInAListNameTheItem(t *testing.T) {
	for text, want := range map[string][]string{
		"client_hba:\n- host all all all trust\n\n- host all all all md5": {"p.yaml:4: client_hba: ", `the method "md5" is not supported`},
		"client_hba: host all all all trust":                              {"p.yaml:1: client_hba: it must be a list"},
		"client_hba: {a: b}":                                              {"it must be a list"},
		"client_hba:":                                                     {"p.yaml:1: client_hba: it must be a list"},
		"client_hba: [[a]]":                                               {"client_hba: it must be one value"},
		"client_hba: [~]":                                                 {"client_hba: it has no value"},
	} {
		_, err := load(t, nil, "--config="+write(t, text), "--member=pg1="+one)
		refuses(t, err, want...)
	}
	_, err := load(t, []string{"PGFAILPROXY_CLIENT_HBA=host all all all trust;host all"}, "--member=pg1="+one)
	refuses(t, err, "PGFAILPROXY_CLIENT_HBA: the rule has 2 of 5 fields")
	_, err = load(t, nil, "--client-hba=", "--member=pg1="+one)
	refuses(t, err, "--client-hba: the rule is empty")
}

func TestAnOldNameIsAnsweredWithTheNewOne(t *testing.T) {
	_, err := load(t, nil, "--config="+write(t, "interval: 1s\nmax_connections: 10\n"), "--member=pg1="+one)
	refuses(t, err, "p.yaml:2: max_connections: ", "write max_client_connections")
	_, err = load(t, []string{"PGFAILPROXY_STARTUP_TIMEOUT=1s"}, "--member=pg1="+one)
	refuses(t, err, "PGFAILPROXY_STARTUP_TIMEOUT: ", "PGFAILPROXY_LOGIN_TIMEOUT")
	_, err = load(t, nil, "--startup-timeout=1s")
	refuses(t, err, "the flag --startup-timeout has another name now: write --login-timeout")
	for old, now := range renamed {
		if lookup(old) != nil || lookup(now) == nil {
			t.Errorf("%s to %s: the table says otherwise", old, now)
		}
	}
}

func TestSettingsForClientsAreRead(t *testing.T) {
	c := mustLoad(t, []string{"PGFAILPROXY_CLIENT_TLS_REQUIRED=true"}, also(withTLS, "--client-tls-min-version=1.3", "--client-tls-ca=ca.pem",
		"--max-client-connections=3", "--max-role-connections=2", "--max-database-connections=1", "--login-timeout=2s", "--client-idle=3m")...)
	if c.ClientTLSCert != "c.pem" || c.ClientTLSKey != "k.pem" || c.ClientTLSCA != "ca.pem" || c.TLSMinVersion() != tls.VersionTLS13 || !c.ClientTLSRequired ||
		c.MaxClientConnections != 3 || c.MaxRoleConnections != 2 || c.MaxDatabaseConnections != 1 || c.LoginTimeout != 2*time.Second || c.ClientIdle != 3*time.Minute {
		t.Errorf("got %s", c)
	}
	c = mustLoad(t, nil, also(nil)...)
	if c.Sessions != Follow || c.Auth != Relay || c.TLSMinVersion() != tls.VersionTLS12 || c.ClientTLSRequired || c.MaxClientConnections != 1000 || c.ClientIdle != 0 {
		t.Errorf("defaults are not as documented: %s", c)
	}
}

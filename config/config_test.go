package config

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the settings table into the README")

func TestMain(m *testing.M) {
	// What libpq reads from the environment must not decide over a test.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PG") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("PGPASSFILE", os.DevNull)
	os.Exit(m.Run())
}

// one is the least that makes a configuration.
const one = "host=10.0.0.1 user=u"

func load(t testing.TB, environ []string, args ...string) (*Config, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	src := Flags(fs)
	if err := fs.Parse(args); err != nil {
		return nil, FlagError(fs, err)
	}
	return src.Load(environ)
}

func mustLoad(t testing.TB, environ []string, args ...string) *Config {
	t.Helper()
	c, err := load(t, environ, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// refuses checks that err is one line with all of want.
func refuses(t testing.TB, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("it was accepted; want an error with %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error: %s\nlacks: %s", err, w)
		}
	}
	if strings.ContainsRune(err.Error(), '\n') {
		t.Errorf("the error has more than one line: %s", err)
	}
}

func names(c *Config) (out []string) {
	for _, m := range c.Members {
		out = append(out, m.Name)
	}
	return out
}

func TestOneMemberAndNothingElseIsEnough(t *testing.T) {
	c := mustLoad(t, nil, "--member", "pg1="+one)
	if c.Listen != "127.0.0.1:6432" || c.Interval != time.Second || c.Threshold != 3 || c.MaxLagBytes != 16<<20 ||
		c.Durability != "async" || c.LogLevel != slog.LevelInfo || c.ReleaseRate != 200 || c.FenceCommand != "" {
		t.Errorf("defaults are not as documented: %s", c)
	}
	if m := c.Members[0]; m.Name != "pg1" || m.Conn.Host != "10.0.0.1" || m.Conn.RuntimeParams["application_name"] != "pgfailproxy" {
		t.Errorf("member %+v", m)
	}
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "pg1 is the only member") {
		t.Errorf("warnings %q", w)
	}
}

func TestWithoutMembersItSaysHowToNameOne(t *testing.T) {
	_, err := load(t, nil)
	refuses(t, err, "members: there is none", `--member pg1="host=`)
}

func TestFlagGoesBeforeEnvironmentBeforeFileBeforeDefault(t *testing.T) {
	path := write(t, "interval: 2s\ntimeout: 2s\nthreshold: 2\nmembers: {pg1: "+one+"}\n")
	env := []string{"HOME=/x", "PGFAILPROXY_TIMEOUT=3s", "PGFAILPROXY_THRESHOLD=4", "PGFAILPROXY_CONFIG=" + path}
	c := mustLoad(t, env, "--threshold=5")
	if c.File != path || c.RetryInterval != 100*time.Millisecond || c.Interval != 2*time.Second || c.Timeout != 3*time.Second || c.Threshold != 5 {
		t.Errorf("got %s", c)
	}
	c = mustLoad(t, []string{"PGFAILPROXY_CONFIG=/does/not/exist"}, "--config", path)
	if c.Interval != 2*time.Second {
		t.Errorf("--config did not go before PGFAILPROXY_CONFIG: %s", c)
	}
}

func TestAWrongValueIsRefusedEvenWhereAnotherGoesBeforeIt(t *testing.T) {
	_, err := load(t, []string{"PGFAILPROXY_INTERVAL=soon"}, "--interval=1s", "--member=pg1="+one)
	refuses(t, err, "PGFAILPROXY_INTERVAL: ", `"soon" is not a duration`)
}

func TestMembersOfOneSourceReplaceThoseOfTheOther(t *testing.T) {
	path := write(t, "members:\n  z: host=z\n  a: host=a\n  m: host=m\n")
	env := []string{"PGFAILPROXY_MEMBER_PG2=host=b", "PGFAILPROXY_MEMBER_PG1=host=c"}
	for _, tt := range []struct {
		env  []string
		args []string
		want []string
	}{
		{nil, nil, []string{"z", "a", "m"}},
		{env, nil, []string{"pg1", "pg2"}},
		{env, []string{"--member", "y=host=y", "--member", "x=host=x"}, []string{"y", "x"}},
	} {
		c := mustLoad(t, tt.env, append([]string{"--config=" + path}, tt.args...)...)
		if !slices.Equal(names(c), tt.want) {
			t.Errorf("members %q, want %q", names(c), tt.want)
		}
	}
}

func TestAConnectionStringWithoutANameIsNotTakenForOne(t *testing.T) {
	for _, text := range []string{"host=a user=u", "postgres://u@a/d", "a", "=host=a", "a b=host=a"} {
		_, err := load(t, nil, "--member", text)
		refuses(t, err, "--member: a member is a name of letters")
	}
}

func TestFileErrorsNameTheLineTheSettingAndWhatToDo(t *testing.T) {
	for text, want := range map[string][]string{
		"interval: 1s\nintervall: 1s\n":                {"p.yaml:2: intervall: there is no such setting", "did you mean interval?"},
		"interval: 1s\n\n# x\ninterval: 2s":            {"p.yaml:4: interval: it is already set in line 1"},
		"members:\n  a: host=a\n  a: host=b":           {"p.yaml:3: members.a: it is already set in line 2"},
		"interval: 5":                                  {"p.yaml:1: interval: ", `"5" has no unit: write 5s or 5ms`},
		"interval: 0s":                                 {"interval: 0s is too short: write 1ms or more"},
		"interval: -1s":                                {"interval: -1s is too short"},
		"interval: 1us":                                {"interval: 1us is too short"},
		"start_timeout: 1000h":                         {"start_timeout: 1000h is too long: write 24h or less"},
		"interval:\n":                                  {"p.yaml:1: interval: it has no value"},
		"interval: [1s]":                               {"p.yaml:1: interval: it must be one value"},
		"threshold: 0":                                 {`threshold: "0" is not a whole number from 1 to 100`},
		"threshold: 1.5":                               {`threshold: "1.5" is not a whole number`},
		"release_rate: -1":                             {`release_rate: "-1" is not a whole number from 0 to 1000000`},
		"max_lag_bytes: 16 Mb":                         {`max_lag_bytes: "16 Mb" is not a size`},
		"max_lag_bytes: -1":                            {`max_lag_bytes: "-1" is not a size`},
		"max_lag_bytes: 99999999999GiB":                {"max_lag_bytes: 99999999999GiB is too much"},
		"durability: sync":                             {`durability: "sync" is not available: this version has async only`},
		"log_level: information":                       {`log_level: "information" is not one of debug, info, warn, error`},
		"log_format: jsn":                              {"did you mean json?"},
		"listen: 6432":                                 {"listen: ", "write host:port"},
		"listen: ':99999'":                             {`listen: port "99999" is not a number from 0 to 65535`},
		`listen: ""`:                                   {"listen: "},
		`record: ""`:                                   {"record: the path is empty"},
		"members: [a, b]":                              {"p.yaml:1: members: it must hold indented lines"},
		"members:\n- a: host=a":                        {"members: it must hold indented lines"},
		"members:\n  a b: host=a":                      {"p.yaml:2: members: a member is a name of letters"},
		"members:\n  a:\n":                             {"p.yaml:2: members.a: it has no value"},
		"members:\n  a: ''\n":                          {"p.yaml:2: members.a: the connection string is empty"},
		"- interval":                                   {"p.yaml:1: the file must hold lines such as"},
		"interval: 1s\n---\ninterval: 2s":              {"more than one YAML document"},
		"interval: 1s\n threshold: 2":                  {"p.yaml: not valid YAML at line 2: "},
		"interval: &a 1s\ntimeout: *a":                 {"p.yaml:2: timeout: aliases are not supported"},
		"a: &a {interval: 1s}\n<<: *a":                 {"p.yaml:1: a: there is no such setting"},
		"? [interval]\n: 1s":                           {"p.yaml:1: a key must be a plain word"},
		"members:\n  a: host=h\n  b: host=H port=5432": {"p.yaml:3: members.b: it has the same address as member a (H:5432)"},
	} {
		_, err := load(t, nil, "--config", write(t, text), "--member=pg1="+one)
		if strings.HasPrefix(text, "members:") { // its own, not the flag's
			_, err = load(t, nil, "--config", write(t, text))
		}
		t.Run("", func(t *testing.T) { refuses(t, err, want...) })
	}
}

func TestFilesThatCannotBeReadAreNamedWithTheirSource(t *testing.T) {
	_, err := load(t, nil, "--config", "/does/not/exist.yaml")
	refuses(t, err, `--config: read "/does/not/exist.yaml": no such file or directory: give it`)
	_, err = load(t, []string{"PGFAILPROXY_CONFIG=" + t.TempDir()})
	refuses(t, err, "PGFAILPROXY_CONFIG: read ", "is a directory")
	_, err = load(t, []string{"PGFAILPROXY_CONFIG="})
	refuses(t, err, "PGFAILPROXY_CONFIG: the path is empty")
	_, err = load(t, nil, "--config", write(t, strings.Repeat("#\n", maxFile)))
	refuses(t, err, "larger than 1 MiB")
}

func TestEmptyFilesLeaveTheDefaults(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "{}", "~"} {
		c := mustLoad(t, nil, "--config", write(t, text), "--member=pg1="+one)
		if c.Interval != time.Second {
			t.Errorf("%q: %s", text, c)
		}
	}
}

func TestUnknownVariablesAreNamed(t *testing.T) {
	_, err := load(t, []string{"PGFAILPROXY_INTERVALL=1s"}, "--member=pg1="+one)
	refuses(t, err, "PGFAILPROXY_INTERVALL: there is no such setting (did you mean PGFAILPROXY_INTERVAL?)")
	_, err = load(t, []string{"PGFAILPROXY_MEMBERS=pg1"})
	refuses(t, err, "PGFAILPROXY_MEMBERS: there is no such setting (did you mean PGFAILPROXY_MEMBER_?)")
	_, err = load(t, []string{"PGFAILPROXY_MEMBER_=" + one})
	refuses(t, err, "PGFAILPROXY_MEMBER_: a member is a name")
	_, err = load(t, []string{"PGFAILPROXY_MEMBER_A=host=a", "PGFAILPROXY_MEMBER_a=host=b"})
	refuses(t, err, "member a is already named by")
}

func TestVariablesOfAKubernetesServiceAreNoSettings(t *testing.T) {
	mustLoad(t, []string{
		"PGFAILPROXY_SERVICE_HOST=10.1.1.1", "PGFAILPROXY_SERVICE_PORT=6432", "PGFAILPROXY_SERVICE_PORT_POSTGRES=6432",
		"PGFAILPROXY_PORT=tcp://10.1.1.1:6432", "PGFAILPROXY_PORT_6432_TCP=tcp://10.1.1.1:6432",
		"PGFAILPROXY_PORT_6432_TCP_PROTO=tcp", "PGFAILPROXY_PORT_6432_TCP_PORT=6432", "PGFAILPROXY_PORT_6432_TCP_ADDR=10.1.1.1",
	}, "--member=pg1="+one)
}

func TestUnknownFlagsGetAHint(t *testing.T) {
	for _, tt := range []struct{ arg, want string }{
		{"--intervall=1s", "unknown flag --intervall (did you mean --interval?)"},
		{"--retry_interval=1s", "(did you mean --retry-interval?)"},
		{"-member=pg1=password=s3cret", "unknown flag -member: the names of settings have two dashes (did you mean --member?)"},
		{"--=s3cret", "a flag is written --name=value"},
		{"--listen", "flag needs an argument"},
	} {
		_, err := load(t, nil, tt.arg)
		refuses(t, err, tt.want)
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error shows a secret: %s", err)
		}
	}
}

func TestRelationsBetweenSettings(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string // nil: accepted
	}{
		{[]string{"--retry-interval=2s"}, []string{"retry_interval (2s) must not be longer than interval (1s)", "lower retry_interval"}},
		{[]string{"--retry-interval=1s"}, nil},
		{[]string{"--hold-timeout=4s"}, []string{"hold_timeout (4s) must be longer than the 4s in which", "raise hold_timeout"}},
		{[]string{"--hold-timeout=4001ms"}, nil},
		{[]string{"--timeout=10s"}, []string{"hold_timeout (30s) must be longer than the 31s"}},
		{[]string{"--timeout=2s"}, nil}, // longer than interval: allowed
		{[]string{"--admin=127.0.0.1:6432"}, []string{"admin (127.0.0.1:6432) must not have the address of listen"}},
		{[]string{"--admin=:6432"}, []string{"another port"}},
		{[]string{"--admin=localhost:6432"}, []string{"another port"}},
		{[]string{"--listen=:0", "--admin=:0"}, nil},
		{[]string{"--listen=10.0.0.9:7000", "--admin=10.0.0.8:7000"}, nil},
		{[]string{"--admin="}, nil},
		{[]string{"--member=pg2=host=localhost port=6432"}, []string{"members.pg2 (localhost:6432) must not be what the proxy listens on"}},
		{[]string{"--member=pg2=host=/tmp port=6432"}, nil}, // a socket
		{[]string{"--shutdown-timeout=0", "--release-rate=0", "--max-client-connections=0", "--max-lag-bytes=0"}, nil},
	} {
		_, err := load(t, nil, append([]string{"--member=pg1=" + one}, tt.args...)...)
		switch {
		case tt.want != nil:
			refuses(t, err, tt.want...)
		case err != nil:
			t.Errorf("%q: %v", tt.args, err)
		}
	}
}

func TestTimesOfDetectionFollowFromTheSettings(t *testing.T) {
	for _, tt := range []struct {
		args        []string
		crash, hang time.Duration
	}{
		{nil, 200 * time.Millisecond, 4 * time.Second},
		{[]string{"--threshold=1"}, 0, 2 * time.Second},
		{[]string{"--interval=3s", "--retry-interval=2s", "--threshold=2"}, 2 * time.Second, 7 * time.Second},
		{[]string{"--timeout=250ms", "--threshold=5"}, 400 * time.Millisecond, 2250 * time.Millisecond},
	} {
		c := mustLoad(t, nil, append([]string{"--member=pg1=" + one}, tt.args...)...)
		if c.DetectCrash() != tt.crash || c.DetectHang() != tt.hang {
			t.Errorf("%q: crash %s, hang %s; want %s, %s", tt.args, c.DetectCrash(), c.DetectHang(), tt.crash, tt.hang)
		}
	}
}

func TestSecretsAreInNothingThatIsPrinted(t *testing.T) {
	c := mustLoad(t, nil, "--member=pg1=host=10.0.0.1 user=u password=s3cret sslpassword=s3cret", "--fence-command=ipmitool -P s3cret off")
	if c.Members[0].Conn.Password != "s3cret" || !strings.Contains(c.FenceCommand, "s3cret") {
		t.Fatal("the secrets did not arrive")
	}
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "config", c, "member", c.Members[0], "members", c.Members)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "config", c, "member", c.Members[0], "members", c.Members)
	m := c.Members[0]
	for _, text := range []string{string(asJSON), logged.String(), fmt.Sprint(c.Public()), fmt.Sprintf("%v %+v %s", c, c, c), fmt.Sprintf("%v %+v %s %#v", m, m, m, m)} {
		if strings.Contains(text, "s3cret") {
			t.Errorf("a secret is shown: %s", text)
		}
	}
	public := fmt.Sprint(c.Public())
	for _, want := range []string{"{members.pg1 10.0.0.1:5432 user=u dbname=u}", "{fence_command (set)}", "{max_lag_bytes 16MiB}"} {
		if !strings.Contains(public, want) {
			t.Errorf("Public lacks %s: %s", want, public)
		}
	}
}

package hba

import (
	"net/netip"
	"strings"
	"testing"
)

func rules(t testing.TB, lines ...string) Rules {
	t.Helper()
	var out Rules
	for _, line := range lines {
		r, err := Parse(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, r)
	}
	return out
}

// app is a client as most are.
func app(change func(*Client)) Client {
	c := Client{TLS: true, Addr: netip.MustParseAddr("10.1.2.3"), Database: "shop", User: "app"}
	if change != nil {
		change(&c)
	}
	return c
}

func addr(text string) func(*Client) {
	return func(c *Client) { c.Addr = netip.MustParseAddr(text) }
}

func TestOneRuleLetsInWhomItNames(t *testing.T) {
	for _, tt := range []struct {
		line   string
		client Client
		method Method
		ok     bool
	}{
		{"host all all all scram-sha-256", app(nil), ScramSHA256, true},
		{"host all all all scram-sha-256", Client{}, ScramSHA256, true},
		{"host all all all reject", app(nil), Reject, false},
		{"host all all all trust", app(nil), Trust, true},

		{"hostssl all all all trust", app(nil), Trust, true},
		{"hostssl all all all trust", app(func(c *Client) { c.TLS = false }), None, false},
		{"hostnossl all all all trust", app(nil), None, false},
		{"hostnossl all all all trust", app(func(c *Client) { c.TLS = false }), Trust, true},

		{"host shop app all trust", app(nil), Trust, true},
		{"host a,shop,b app all trust", app(nil), Trust, true},
		{"host a, shop,\tb b, app all trust", app(nil), Trust, true},
		{"host Shop app all trust", app(nil), None, false},
		{"host shop App all trust", app(nil), None, false},
		{`host "shop" "app" all trust`, app(nil), Trust, true},
		{`host "all" app all trust`, app(nil), None, false},
		{`host "all" app all trust`, app(func(c *Client) { c.Database = "all" }), Trust, true},
		{`host shop "all" all trust`, app(nil), None, false},
		{`host "my ""shop"", the 2nd #1" app all trust`, app(func(c *Client) { c.Database = `my "shop", the 2nd #1` }), Trust, true},
		{"host sameuser all all trust", app(nil), None, false},
		{"host sameuser all all trust", app(func(c *Client) { c.Database = "app" }), Trust, true},
		{`host "sameuser" all all trust`, app(func(c *Client) { c.Database = "app" }), None, false},
		{"host all sameuser all trust", app(func(c *Client) { c.User = "sameuser" }), Trust, true}, // no keyword for users

		// Physical replication is of no database; a database may have its name.
		{"host all all all trust", app(func(c *Client) { c.Replication = true }), None, false},
		{"host replication all all trust", app(func(c *Client) { c.Replication = true }), Trust, true},
		{"host replication all all trust", app(func(c *Client) { c.Database = "replication" }), None, false},
		{`host "replication" all all trust`, app(func(c *Client) { c.Database = "replication" }), Trust, true},
		{`host "replication" all all trust`, app(func(c *Client) { c.Replication = true }), None, false},
		{"host shop,replication all all trust", app(func(c *Client) { c.Replication = true }), Trust, true},

		{"host all all 10.0.0.0/8 trust", app(nil), Trust, true},
		{"host all all 10.9.9.9/8 trust", app(nil), Trust, true}, // as PostgreSQL: the mask decides
		{"host all all 11.0.0.0/8 trust", app(nil), None, false},
		{"host all all 10.1.2.3 trust", app(nil), Trust, true},
		{"host all all 10.1.2.4 trust", app(nil), None, false},
		{"host all all 0.0.0.0/0 trust", app(nil), Trust, true},
		{"host all all 0.0.0.0/0 trust", app(addr("2001:db8::1")), None, false},
		{"host all all ::/0 trust", app(addr("2001:db8::1")), Trust, true},
		{"host all all ::/0 trust", app(nil), None, false},
		{"host all all 10.0.0.0/8 trust", app(addr("::ffff:10.1.2.3")), Trust, true},
		{"host all all ::ffff:10.0.0.0/104 trust", app(nil), Trust, true},
		{"host all all ::ffff:10.1.2.3 trust", app(nil), Trust, true},
		{"host all all fe80::/10 trust", app(addr("fe80::1%eth0")), Trust, true},
		{"host all all 10.0.0.0/8 trust", app(func(c *Client) { c.Addr = netip.Addr{} }), None, false},

		{"hostssl all all all cert", app(func(c *Client) { c.CertCN = "app" }), Cert, true},
		{"hostssl all all all cert", app(func(c *Client) { c.CertCN = "App" }), Cert, false},
		{"hostssl all all all cert", app(nil), Cert, false},
		{"hostssl all all all cert", app(func(c *Client) { c.User = "" }), Cert, false},

		{"  host\tall  all all trust # until Monday", app(nil), Trust, true},
	} {
		m, ok := rules(t, tt.line).Match(tt.client)
		if m != tt.method || ok != tt.ok {
			t.Errorf("%s: %+v: %s, %v; want %s, %v", tt.line, tt.client, m, ok, tt.method, tt.ok)
		}
	}
}

func TestTheFirstRuleThatMatchesDecidesAndNobodyElseIsLetIn(t *testing.T) {
	r := rules(t,
		"host all evil all reject",
		"hostssl all all 10.0.0.0/8 cert",
		"host all all 10.0.0.0/8 scram-sha-256",
		"host all all 127.0.0.1 trust",
	)
	for _, tt := range []struct {
		client Client
		method Method
		ok     bool
	}{
		{app(func(c *Client) { c.User, c.CertCN = "evil", "evil" }), Reject, false},
		{app(nil), Cert, false}, // no second chance with a password
		{app(func(c *Client) { c.TLS = false }), ScramSHA256, true},
		{app(addr("127.0.0.1")), Trust, true},
		{app(addr("192.0.2.1")), None, false},
	} {
		if m, ok := r.Match(tt.client); m != tt.method || ok != tt.ok {
			t.Errorf("%+v: %s, %v; want %s, %v", tt.client, m, ok, tt.method, tt.ok)
		}
	}
	if m, ok := Rules(nil).Match(app(nil)); m != None || ok {
		t.Errorf("without rules: %s, %v", m, ok)
	}
}

func TestAWrongRuleSaysWhatToWrite(t *testing.T) {
	for line, want := range map[string]string{
		"":                                    "the rule is empty: write ",
		"# nothing":                           "the rule is empty: write ",
		"host all all":                        "the rule has 3 of 5 fields: write ",
		"local all all trust":                 "over TCP only",
		"local all all all trust":             "over TCP only: write host, hostssl or hostnossl",
		"hostgssenc all all all trust":        `not with "hostgssenc"`,
		"HOST all all all trust":              `begins with host, hostssl or hostnossl`,
		"host,hostssl all all all trust":      `not with "host,hostssl"`,
		`"host" all all all trust`:            `a rule begins with host`,
		"host all all all md5":                `the method "md5" is not supported: write scram-sha-256`,
		"host all all all none":               `the method "none" is not supported`,
		`host all all all "trust"`:            `is not supported`,
		"host all all all cert":               "write hostssl in place of host",
		"hostnossl all all all cert":          "write hostssl in place of hostnossl",
		"host all all all trust map=x":        "options are not supported",
		"host all all 10.0.0.0 255.0.0.0 md5": "write it as a network, such as 10.0.0.0/24",
		"host all all db1.example.com trust":  "names of hosts are not supported",
		"host all all samenet trust":          `"samenet" is not an address`,
		"host all all 10.0.0.0/33 trust":      "is not an address",
		"host all all fe80::1%eth0 trust":     "is not an address",
		`host all all "all" trust`:            "is not an address",
		"host all all a,b trust":              `"a,b" is not an address`,
		"host samerole all all trust":         "the database samerole is not supported",
		"host /^a all all trust":              "the database /^a is not supported",
		"host all +group all trust":           "name each user",
		"host all @file all trust":            "the user @file is not supported",
		`host "" all all trust`:               "empty name",
		`host "a all all trust`:               "not closed: write one",
		`host a"b" all all trust`:             "put the whole name into double quotes",
		`host "a"b all all trust`:             "write a blank or a comma between",
		"host a,,b all all trust":             "write a,b",
		"host a ,b all all trust":             "write a,b",
		"host all all all trust,":             "write a,b",
		"host all all all trust\n":            "control character",
		"host a\x00b all all trust":           "control character",
	} {
		_, err := Parse(line)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", line, err, want)
		}
	}
}

func TestMatchingAllocatesNothing(t *testing.T) {
	r := rules(t, "hostssl a,b sameuser all reject", "host all all 10.0.0.0/8 scram-sha-256")
	c := app(nil)
	if n := testing.AllocsPerRun(100, func() { r.Match(c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParse checks that a rule reads back as it prints, and so means what it
// shows, and that no line is answered with anything but one sentence.
func FuzzParse(f *testing.F) {
	for _, line := range []string{
		"host all all all trust", `hostssl "a ""b"",c",sameuser app,"all" 10.0.0.0/8 cert # x`, "hostnossl replication +x ::1 reject",
		"host all all ::ffff:1.2.3.4/100 scram-sha-256", "host a, b c fe80::/10 trust", `host "+a" "@b" all trust`,
	} {
		f.Add(line, "app", "shop")
	}
	f.Fuzz(func(t *testing.T, line, user, database string) {
		r, err := Parse(line)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Errorf("%q: more than one line: %s", line, err)
			}
			return
		}
		again, err := Parse(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q prints as %q, which is %v, %v", line, r, again, err)
		}
		for _, c := range []Client{{User: user, Database: database}, {User: user, Database: user, Replication: true}, {TLS: true, CertCN: user, User: user, Database: "shop", Addr: netip.MustParseAddr("10.1.2.3")}} {
			m, ok := Rules{r}.Match(c)
			m2, ok2 := Rules{again}.Match(c)
			if m != m2 || ok != ok2 {
				t.Errorf("%q and %q differ for %+v: %s, %s", line, r, c, m, m2)
			}
		}
	})
}

package proxy

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/cluster"
	"pgfailproxy/hba"
	"pgfailproxy/internal/pgtest"
)

// inTLS is inFollowed with a proxy that has a certificate.
func inTLS(t *testing.T, change func(*Options), test func(b *bubble, m *member)) {
	inFollowed(t, func(o *Options, _ *RouterOptions) {
		cert := pgtest.Certificate(t)
		config := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{alpn}}
		o.ClientTLS = &ClientTLS{ForConnection: func() (*tls.Config, *x509.Certificate) { return config, cert.Leaf }}
		if change != nil {
			change(o)
		}
	}, test)
}

// secure asks for TLS and does the handshake.
func (c *client) secure() *client {
	c.t.Helper()
	c.send(requestPacket(sslRequest))
	c.want("S")
	return c.shake([]string{alpn})
}

func (c *client) shake(protocols []string) *client {
	c.t.Helper()
	conn := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
	if err := conn.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	return &client{conn, c.t}
}

func (c *client) loggedIn() {
	c.t.Helper()
	c.want(string(authOK))
	c.until('Z')
}

func TestAHeldClientWithTLSGoesOnAndIsToldOverTLS(t *testing.T) {
	inTLS(t, nil, func(b *bubble, m *member) {
		b.giveUp()
		c := b.dial().secure()
		c.send(startupPacket("alice"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s := b.server.Stats(); s.Held != 1 {
			t.Fatalf("%+v, want one held", s)
		}
		b.succeed()
		c.loggedIn()
		c.query("BEGIN")
		c.until('Z')
		if s := b.server.Sessions(); len(s) != 1 || !s[0].TLS || s[0].State != StateTransaction {
			t.Errorf("%+v", s)
		}
		b.giveUp()
		c.wantFatal("40001", "failover")
	})
}

func TestDirectTLSNeedsItsProtocol(t *testing.T) {
	inTLS(t, nil, func(b *bubble, m *member) {
		c := b.dial().shake([]string{alpn})
		c.send(startupPacket("alice"))
		c.loggedIn()
		c.Close()
		if _, err := b.dial().shake(nil).Read(make([]byte, 1)); err == nil {
			t.Error("direct TLS of no protocol was served")
		}
	})
}

func TestWithoutACertificateTLSIsRefusedInTheClientsLanguage(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c := b.dial()
		c.send(requestPacket(sslRequest))
		c.want("N")
		c.send(startupPacket("alice"))
		c.loggedIn()

		direct := tls.Client(b.dial(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}})
		if err := direct.Handshake(); err == nil || !strings.Contains(err.Error(), "handshake failure") {
			t.Errorf("direct TLS: %v", err)
		}
		synctest.Wait()
		if n := strings.Count(b.log.String(), "a client asked for TLS"); n != 1 {
			t.Errorf("%d lines in the log, want 1", n)
		}
	})
}

func TestTLSCanBeRequired(t *testing.T) {
	inTLS(t, func(o *Options) { o.ClientTLS.Required = true }, func(b *bubble, m *member) {
		b.connect().wantFatal("28000", "SSL connection is required")
		c := b.dial().secure()
		c.send(startupPacket("alice"))
		c.loggedIn()
	})
}

// Nothing can be said to who does not shake hands; and it is not waited for
// longer than for others.
func TestTLSNonsenseEndsTheConnection(t *testing.T) {
	inTLS(t, nil, func(b *bubble, m *member) {
		for name, nonsense := range map[string]string{"garbage": strings.Repeat("x", 100), "nothing": "", "half a record": "\x16\x03\x01\x02\x00\x01"} {
			began := time.Now()
			c := b.dial()
			c.send(requestPacket(sslRequest))
			c.want("S")
			c.send([]byte(nonsense))
			all, _ := io.ReadAll(c)
			if strings.Contains(string(all), "FATAL") {
				t.Errorf("%s: answered in clear: %q", name, all)
			}
			if took := time.Since(began); took > bubbleOptions.LoginTimeout {
				t.Errorf("%s: ended after %s", name, took)
			}
			c.Close()
		}
	})
}

// roles is a source of verifiers.
type roles map[string]string

func (r roles) Lookup(_ context.Context, _ string, _ cluster.Addr, role string) (string, error) {
	if r[role] == "broken" {
		return "", errors.New("the function is missing")
	}
	return r[role], nil
}

// verifierOf makes what PostgreSQL stores of a password (RFC 5803).
func verifierOf(t *testing.T, password string) string {
	t.Helper()
	salt := []byte("saltsaltsaltsalt")
	salted, err := pbkdf2.Key(sha256.New, password, salt, 4096, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return "SCRAM-SHA-256$4096:" + b64(salt) + "$" + b64(stored[:]) + ":" + b64(mac("Server Key"))
}

func terminating(t *testing.T, lines ...string) func(*Options) {
	t.Helper()
	var rules hba.Rules
	for _, line := range lines {
		rule, err := hba.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, rule)
	}
	return func(o *Options) {
		o.Terminate = &Terminate{Rules: rules, Verifiers: roles{
			"alice": verifierOf(t, "secret"), "md5": "not stored as scram-sha-256", "broken": "broken"}}
	}
}

// pgx logs in with pgx; with TLS, bound to the certificate.
func (b *bubble) pgx(user, password string, secure bool) error {
	config, err := pgconn.ParseConfig("host=proxy sslmode=disable channel_binding=disable user=" + user + " password=" + password)
	if err != nil {
		b.t.Fatal(err)
	}
	if secure {
		config.TLSConfig = &tls.Config{InsecureSkipVerify: true}
		config.ChannelBinding = "require"
	}
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return b.net.Dial(ctx, "proxy") }
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"proxy"}, nil }
	conn, err := pgconn.ConnectConfig(context.Background(), config)
	if err != nil {
		return err
	}
	return conn.Close(context.Background())
}

func TestTheProxyChecksPasswordsItself(t *testing.T) {
	inTLS(t, terminating(t, "hostssl all all all scram-sha-256", "host all trusted all trust"), func(b *bubble, m *member) {
		if err := b.pgx("alice", "secret", true); err != nil {
			t.Errorf("bound to the proxy's certificate: %v", err)
		}
		var told *pgconn.PgError
		texts := map[string]string{}
		for _, role := range []string{"alice", "nobody", "md5"} {
			if err := b.pgx(role, "wrong", true); !errors.As(err, &told) || told.Code != "28P01" {
				t.Errorf("%s with a wrong password: %v", role, err)
				continue
			}
			texts[strings.ReplaceAll(told.Message, role, "?")] = role
		}
		if len(texts) != 1 {
			t.Errorf("a stranger can tell roles apart: %q", texts)
		}
		if err := b.pgx("broken", "secret", true); !errors.As(err, &told) || told.Code != "28000" || !strings.Contains(b.log.String(), "the function is missing") {
			t.Errorf("without a verifier: %v", err)
		}
		if err := b.pgx("alice", "secret", false); !errors.As(err, &told) || told.Code != "28000" || !strings.Contains(told.Message, "no client_hba entry") {
			t.Errorf("without TLS: %v", err)
		}
		if err := b.pgx("trusted", "", false); err != nil {
			t.Errorf("trusted: %v", err)
		}
	})
}

func TestASecondKeyOfTheServerEndsTheLogin(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		m.extra = message('K', serverKey)
		c := b.connect()
		if all, _ := io.ReadAll(c); !strings.Contains(string(all), "C08P01") || !strings.Contains(string(all), "a second key") || strings.Contains(string(all), serverKey[4:]) {
			t.Errorf("%q", all)
		}
	})
}

func TestAKeyAfterTheLoginIsNotShown(t *testing.T) {
	inFollowed(t, nil, func(b *bubble, m *member) {
		c, _ := b.login()
		m.each(func(s net.Conn) { s.Write(message('K', serverKey)) })
		c.wantFatal("57P01", "was lost")
	})
}

// Between the look at a session and its end it may have begun to work.
func TestASessionThatIsEndedForBeingIdleIsNotToldSoIfItWorks(t *testing.T) {
	s := &session{server: &Server{opts: Options{ClientIdle: time.Minute}}, tracker: newTracker(false)}
	if e := s.lastWord(0, errIdle); e.Code != codeIdle {
		t.Errorf("idle: %s", e.Code)
	}
	sent := play(t, &s.tracker, "> Q UPDATE")
	if e := s.lastWord(sent, errIdle); e.Code != codeInDoubt || e.Hint == "" {
		t.Errorf("at work: %+v", e)
	}
}

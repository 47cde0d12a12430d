package pgwire

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/internal/pgtest"
)

// peerTime bounds what a test waits for a peer.
const peerTime = 30 * time.Second

// certificate returns one for 127.0.0.1 that signs itself; an algorithm of 0 is what
// the kind of key takes by itself.
func certificate(t testing.TB, key crypto.Signer, algorithm x509.SignatureAlgorithm) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		SignatureAlgorithm: algorithm, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}
}

func ecdsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// host is the least server that a client can log in to: SCRAM, and an answer to
// any query.
type host struct {
	verifier Verifier
	cert     *tls.Certificate // nil: no TLS
	endpoint []byte           // what it binds to, if not its certificate

	// What came of it.
	mechanism string
	key       Key
}

// welcome serves one client until that leaves, or was not let in.
func (h *host) welcome(conn net.Conn) error {
	defer func() { conn.Close() }()
	conn.SetDeadline(time.Now().Add(peerTime))
	for {
		p, err := ReadPacket(bufio.NewReaderSize(conn, 16)) // a client waits for an answer to each
		if err != nil {
			return err
		}
		switch {
		case p.Kind == KindSSL && h.cert != nil:
			if _, err := conn.Write([]byte{'S'}); err != nil {
				return err
			}
			conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*h.cert}})
		case p.Kind == KindSSL, p.Kind == KindGSS:
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return err
			}
		default:
			return h.logIn(conn)
		}
	}
}

func (h *host) logIn(conn net.Conn) error {
	last, err := h.scram(conn)
	if err != nil {
		e := Error{Code: codeOf(err), Message: err.Error()}
		if errors.Is(err, ErrScramFailed) {
			e.Code = "28P01"
		}
		text, _ := Fatal(e)
		conn.Write(text)
		return err
	}
	ready := []byte("Z\x00\x00\x00\x05I")
	for out := append(last, ready...); ; out = append([]byte("I\x00\x00\x00\x04"), ready...) {
		if _, err := conn.Write(out); err != nil {
			return err
		}
		if kind, _, err := ReadMessage(conn); err != nil || kind == 'X' {
			return err
		}
	}
}

// scram returns what is to be said to a client that is let in.
func (h *host) scram(conn net.Conn) ([]byte, error) {
	endpoint := h.endpoint
	if endpoint == nil && h.cert != nil {
		endpoint = Endpoint(h.cert.Leaf)
	}
	s := NewScramServer(h.verifier, endpoint)
	ask := func(request []byte, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		_, raw, err := ReadMessage(conn)
		if err != nil {
			return nil, err
		}
		return raw[5:], nil
	}
	body, err := ask(AskSASL(s.Mechanisms()))
	if err != nil {
		return nil, err
	}
	mechanism, data, err := SASLInitialResponse(body)
	if err != nil {
		return nil, err
	}
	h.mechanism = mechanism
	if data, err = s.First(mechanism, data); err != nil {
		return nil, err
	}
	if data, err = ask(ContinueSASL(data)); err != nil {
		return nil, err
	}
	if data, h.key, err = s.Final(data); err != nil {
		return nil, err
	}
	last, err := FinishSASL(data)
	if err != nil {
		return nil, err
	}
	ok, err := Authenticated()
	return append(last, ok...), err
}

// listen welcomes one client on a port, and returns what came of it.
func (h *host) listen(t *testing.T) (port int, end func() error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			err = h.welcome(conn)
		}
		done <- err
	}()
	return ln.Addr().(*net.TCPAddr).Port, func() error {
		ln.Close()
		return <-done
	}
}

// dial has pgx log in to h with a password.
func (h *host) dial(t *testing.T, password, settings string) (clientErr, hostErr error) {
	t.Helper()
	port, end := h.listen(t)
	ctx, cancel := context.WithTimeout(t.Context(), peerTime)
	defer cancel()
	conn, err := pgconn.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d user=app dbname=app password=%s %s", port, password, settings))
	if err == nil {
		err = errors.Join(conn.Exec(ctx, "").Close(), conn.Close(ctx))
	}
	return err, end()
}

func TestPgxLogsInAndItsKeyIsRecovered(t *testing.T) {
	cert := certificate(t, ecdsaKey(t), 0)
	for _, c := range []struct {
		settings, mechanism string
		cert                *tls.Certificate
	}{
		{"sslmode=disable", ScramPlain, nil},
		{"sslmode=require", ScramPlus, &cert},
		{"sslmode=require channel_binding=require", ScramPlus, &cert},
		{"sslmode=require channel_binding=disable", ScramPlain, &cert},
	} {
		v, key := pencil()
		h := &host{verifier: v, cert: c.cert}
		if clientErr, err := h.dial(t, "pencil", c.settings); clientErr != nil || err != nil {
			t.Errorf("%s: %v, %v", c.settings, clientErr, err)
		} else if h.mechanism != c.mechanism || *h.key.secret != *key.secret {
			t.Errorf("%s: %s, or another key", c.settings, h.mechanism)
		}
	}
}

func TestPgxBindsToEveryKindOfCertificateAsWeDo(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec := ecdsaKey(t)
	v, _ := pencil()
	for _, c := range []struct {
		key       crypto.Signer
		algorithm x509.SignatureAlgorithm
		size      int // of the hash; 0: there is none
	}{
		{ec, x509.ECDSAWithSHA256, 32}, {ec, x509.ECDSAWithSHA384, 48}, {ec, x509.ECDSAWithSHA512, 64},
		{rsaKey, x509.SHA256WithRSA, 32}, {rsaKey, x509.SHA384WithRSA, 48}, {rsaKey, x509.SHA512WithRSA, 64},
		{rsaKey, x509.SHA256WithRSAPSS, 32}, {rsaKey, x509.SHA384WithRSAPSS, 48}, {rsaKey, x509.SHA512WithRSAPSS, 64},
		{edKey, x509.PureEd25519, 0},
	} {
		cert := certificate(t, c.key, c.algorithm)
		if got := len(Endpoint(cert.Leaf)); got != c.size {
			t.Errorf("%v: %d bytes", c.algorithm, got)
		}
		settings := "sslmode=require channel_binding=require"
		if c.size == 0 {
			settings = "sslmode=require"
		}
		if clientErr, err := (&host{verifier: v, cert: &cert}).dial(t, "pencil", settings); clientErr != nil || err != nil {
			t.Errorf("%v: %v, %v", c.algorithm, clientErr, err)
		}
	}
}

func TestPgxIsToldWhyItIsNotLetIn(t *testing.T) {
	cert := certificate(t, ecdsaKey(t), 0)
	v, _ := pencil()
	for _, c := range []struct {
		name, password, code string
		host                 *host
	}{
		{"wrong password", "pen", "28P01", &host{verifier: v}},
		{"wrong password over TLS", "pen", "28P01", &host{verifier: v, cert: &cert}},
		{"unknown role", "pencil", "28P01", &host{verifier: MockVerifier([]byte("x"), "app")}},
		{"somebody in the middle", "pencil", "28000", &host{verifier: v, cert: &cert, endpoint: []byte("another")}},
	} {
		settings := "sslmode=disable"
		if c.host.cert != nil {
			settings = "sslmode=require"
		}
		clientErr, err := c.host.dial(t, c.password, settings)
		var told *pgconn.PgError
		if !errors.As(clientErr, &told) || told.Code != c.code || err == nil || c.host.key.secret != nil {
			t.Errorf("%s: %v, %v", c.name, clientErr, err)
		}
	}
}

func TestPsqlLogsIn(t *testing.T) {
	cert := certificate(t, ecdsaKey(t), 0)
	v, key := pencil()
	for _, c := range []struct {
		settings, password, mechanism string
		cert                          *tls.Certificate
	}{
		{"sslmode=disable", "pencil", ScramPlain, nil},
		{"sslmode=prefer", "pencil", ScramPlus, &cert},
		{"sslmode=require channel_binding=require", "pencil", ScramPlus, &cert},
		{"sslmode=require channel_binding=disable", "pencil", ScramPlain, &cert},
		{"sslmode=require channel_binding=require", "pen", "", &cert},
	} {
		h := &host{verifier: v, cert: c.cert}
		port, end := h.listen(t)
		ctx, cancel := context.WithTimeout(t.Context(), peerTime)
		psql := exec.CommandContext(ctx, filepath.Join(pgtest.Install(t).Bin, "psql"), "-X", "-w", "-c", "select",
			fmt.Sprintf("host=127.0.0.1 port=%d user=app dbname=app %s", port, c.settings))
		psql.Env = []string{"PGPASSWORD=" + c.password, "LC_ALL=C"}
		out, clientErr := psql.CombinedOutput()
		cancel()
		err := end()
		switch {
		case c.mechanism == "":
			if !errors.Is(err, ErrScramFailed) || clientErr == nil || !bytes.Contains(out, []byte("wrong password")) {
				t.Errorf("a wrong password: %v, %v, %s", err, clientErr, out)
			}
		case clientErr != nil || err != nil || h.mechanism != c.mechanism || *h.key.secret != *key.secret:
			t.Errorf("%s: %v, %v, %s, %s", c.settings, clientErr, err, h.mechanism, out)
		}
	}
}

package pgwire

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
)

// refusal is a server's ErrorResponse.
type refusal struct{ code, text string }

func (r refusal) Error() string { return r.code + " " + r.text }

// guest logs in to a server with a key, as the proxy does.
type guest struct {
	key      Key
	verifier Verifier
	tls      bool
	// What to bend before it begins: the hash that it binds to, and the offer.
	endpoint func([]byte) []byte
	offered  func([]string) []string
}

func (g guest) logIn(t *testing.T, addr string) (mechanism string, err error) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, peerTime)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close() }()
	conn.SetDeadline(time.Now().Add(peerTime))
	var endpoint []byte
	if g.tls {
		secure := encrypt(t, conn)
		conn, endpoint = secure, Endpoint(secure.ConnectionState().PeerCertificates[0])
	}
	if g.endpoint != nil {
		endpoint = g.endpoint(endpoint)
	}
	c := NewScramClient(g.key, g.verifier, endpoint)

	offer, err := tell(conn, packet(version30, "user\x00app\x00database\x00postgres\x00\x00"), AuthSASL)
	if err != nil {
		return "", err
	}
	names, err := SASLMechanisms(offer)
	if err != nil {
		return "", err
	}
	if g.offered != nil {
		names = g.offered(names)
	}
	mechanism, data, err := c.First(names)
	if err != nil {
		return "", err
	}
	if data, err = tell(conn, must(t)(BeginSASL(mechanism, data)), AuthSASLContinue); err != nil {
		return mechanism, err
	}
	if data, err = c.Final(data); err != nil {
		return mechanism, err
	}
	if data, err = tell(conn, must(t)(AnswerSASL(data)), AuthSASLFinal); err != nil {
		return mechanism, err
	}
	if err = c.Verify(data); err != nil {
		return mechanism, err
	}
	_, err = tell(conn, nil, AuthOK)
	return mechanism, err
}

func encrypt(t *testing.T, conn net.Conn) *tls.Conn {
	t.Helper()
	var answer [1]byte
	if _, err := conn.Write(packet(codeSSL, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, answer[:]); err != nil || answer[0] != 'S' {
		t.Fatalf("asked for TLS: %q, %v", answer, err)
	}
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // the binding is what is tested
	if err := secure.Handshake(); err != nil {
		t.Fatal(err)
	}
	return secure
}

// tell says something to a server and wants a certain request for an answer.
func tell(conn io.ReadWriter, message []byte, want AuthKind) ([]byte, error) {
	if _, err := conn.Write(message); err != nil {
		return nil, err
	}
	_, raw, err := ReadMessage(conn)
	if err != nil {
		return nil, err
	}
	if raw[0] == 'E' {
		return nil, refusal{SQLState(raw), ErrorText(raw)}
	}
	kind, data, err := ParseAuth(raw[5:])
	if err == nil && (raw[0] != 'R' || kind != want) {
		err = fmt.Errorf("%q %d, want %d", raw[0], kind, want)
	}
	return data, err
}

// postgres starts a server that wants SCRAM and has TLS, with a role app.
func postgres(t *testing.T, password string) *pgserver.Server {
	t.Helper()
	s := pgtest.Primary(t, pgserver.Options{Password: "of the superuser"})
	pgtest.EnableTLS(t, s, certificate(t, ecdsaKey(t), 0))
	pgtest.Exec(t, s, "create role app login password '"+password+"'")
	return s
}

func storedVerifier(t *testing.T, s *pgserver.Server) Verifier {
	t.Helper()
	v, err := ParseVerifier(pgtest.Value[string](t, s, "select rolpassword from pg_authid where rolname = 'app'"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestAClientLogsInOnceAndWeLogInForIt is the whole way: what PostgreSQL keeps
// lets a client in, and what that proves lets us in.
func TestAClientLogsInOnceAndWeLogInForIt(t *testing.T) {
	const password = "it is known"
	s := postgres(t, password)
	v := storedVerifier(t, s)
	if mock := MockVerifier(nil, "app"); len(mock.salt) != len(v.salt) || mock.iterations != v.iterations {
		t.Errorf("a role that there is has %d iterations and %d bytes of salt, one that there is not %d and %d",
			v.iterations, len(v.salt), mock.iterations, len(mock.salt))
	}
	h := &host{verifier: v}
	if clientErr, err := h.dial(t, "'"+password+"'", "sslmode=disable"); clientErr != nil || err != nil {
		t.Fatal(clientErr, err)
	}
	for _, c := range []struct {
		name, mechanism string
		guest           guest
		want            error
	}{
		{"without TLS", ScramPlain, guest{}, nil},
		{"with TLS", ScramPlus, guest{tls: true}, nil},
		{"with TLS and no binding", ScramPlain, guest{tls: true, endpoint: func([]byte) []byte { return nil }}, nil},
		{"through somebody in the middle", ScramPlus, guest{tls: true, endpoint: func(b []byte) []byte { b[0] ^= 1; return b }},
			refusal{"28000", "SCRAM channel binding check failed"}},
		{"through somebody who takes the binding away", ScramPlain, guest{tls: true, offered: func([]string) []string { return []string{ScramPlain} }},
			refusal{"28000", "SCRAM channel binding negotiation error"}},
	} {
		c.guest.key, c.guest.verifier = h.key, v
		if mechanism, err := c.guest.logIn(t, s.Addr()); mechanism != c.mechanism || !errors.Is(err, c.want) {
			t.Errorf("%s: %s, %v", c.name, mechanism, err)
		}
	}

	pgtest.Exec(t, s, "alter role app password '"+password+"'") // the same
	if _, err := (guest{key: h.key, verifier: v}).logIn(t, s.Addr()); !errors.Is(err, ErrKeyChanged) {
		t.Errorf("after the password was set anew: %v", err)
	}
	if _, err := (guest{key: h.key, verifier: storedVerifier(t, s)}).logIn(t, s.Addr()); !errors.Is(err, ErrKeyChanged) {
		t.Errorf("with the new verifier: %v", err)
	}
}

func TestTheKeyOfAnExchangeWithPostgreSQLIsRecovered(t *testing.T) {
	s := postgres(t, "pencil")
	ours, theirs := net.Pipe()
	recorded := make(chan [][]byte, 1)
	go func() { recorded <- relaySCRAM(ours, s.Addr()) }()
	config, err := pgconn.ParseConfig("host=127.0.0.1 user=app dbname=postgres password=pencil sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return theirs, nil }
	ctx, cancel := context.WithTimeout(t.Context(), peerTime)
	defer cancel()
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(ctx)
	m := <-recorded
	if len(m) != 3 {
		t.Fatalf("%d messages were recorded", len(m))
	}
	v := storedVerifier(t, s)
	key, err := RecoverKey(v, m[0], m[1], m[2])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (guest{key: key, verifier: v}).logIn(t, s.Addr()); err != nil {
		t.Errorf("with the key: %v", err)
	}
	pgtest.Exec(t, s, "alter role app password 'pencil'")
	if _, err := RecoverKey(storedVerifier(t, s), m[0], m[1], m[2]); !errors.Is(err, ErrKeyChanged) {
		t.Errorf("with a later verifier: %v", err)
	}
}

// relaySCRAM carries one login, and what follows, between a client and the
// server at addr. It returns the three messages that RecoverKey wants.
func relaySCRAM(client net.Conn, addr string) (all [][]byte) {
	defer client.Close()
	server, err := net.DialTimeout("tcp", addr, peerTime)
	if err != nil {
		return nil
	}
	defer server.Close()
	start, err := ReadPacket(bufio.NewReaderSize(client, 16))
	if err != nil {
		return nil
	}
	server.Write(start.Raw)
	for {
		kind, raw, err := ReadMessage(server)
		if err != nil {
			return all
		}
		client.Write(raw)
		wants, data, _ := ParseAuth(raw[5:])
		if kind != 'R' || wants != AuthSASL && wants != AuthSASLContinue {
			break
		}
		_, answer, err := ReadMessage(client)
		if err != nil {
			return all
		}
		server.Write(answer)
		if wants == AuthSASL {
			_, first, _ := SASLInitialResponse(answer[5:])
			all = append(all, first)
		} else {
			all = append(all, data, answer[5:])
		}
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(client, server)
	}()
	io.Copy(server, client)
	server.Close()
	<-back
	return all
}

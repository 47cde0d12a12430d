package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// fakeCommand is the argument that makes this program a server. It is a process
// of its own, so that what it takes is not taken for a proxy's.
const fakeCommand = "fake-postgres"

// parameters are what PostgreSQL 18 reports of itself to every new session.
var parameters = [][2]string{
	{"in_hot_standby", "off"}, {"integer_datetimes", "on"}, {"TimeZone", "Etc/UTC"}, {"IntervalStyle", "postgres"},
	{"search_path", `"$user", public`}, {"is_superuser", "on"}, {"application_name", ""},
	{"default_transaction_read_only", "off"}, {"scram_iterations", "4096"}, {"DateStyle", "ISO, MDY"},
	{"standard_conforming_strings", "on"}, {"session_authorization", "postgres"}, {"client_encoding", "UTF8"},
	{"server_version", "18.0"}, {"server_encoding", "UTF8"},
}

// primary is the row of a primary that a question about its health is answered
// with: the columns are those of package health's query.
var primary = []string{"1", "f", "7000000000000000001", "00000001", "0/3000000", "", "f", "180000"}

// startFake starts a server that answers everything and does nothing. The caller
// stops it.
func startFake(dir string) (p *process, port int, err error) {
	if port, err = freePort(); err != nil {
		return nil, 0, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	p, err = startProcess(dir, "fake", program, fakeCommand, fmt.Sprintf("127.0.0.1:%d", port))
	return p, port, err
}

// fakePostgres is the whole of that process.
func fakePostgres(address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return serveFake(ln)
}

// serveFake serves until ln is closed.
func serveFake(ln net.Listener) error {
	for n := uint32(1); ; n++ {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			serveFakeSession(conn, n) // how it ends is the client's affair
		}()
	}
}

// serveFakeSession lets everybody in, and answers queries until the client goes.
func serveFakeSession(conn net.Conn, n uint32) error {
	b := pgproto3.NewBackend(conn, conn)
	for loggedIn := false; !loggedIn; {
		switch m, err := b.ReceiveStartupMessage(); m.(type) {
		case *pgproto3.StartupMessage:
			loggedIn = true
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return err
			}
		default: // a request to cancel, or nothing
			return err
		}
	}
	if _, err := conn.Write(greeting(n)); err != nil {
		return err
	}
	for {
		m, err := b.Receive()
		if err != nil {
			return err
		}
		q, ok := m.(*pgproto3.Query)
		if !ok {
			return errors.New("no simple query")
		}
		answer := one
		if strings.Contains(q.String, "pg_control_system") {
			answer = healthy
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}

// greeting is what the nth session is told once it is let in.
func greeting(n uint32) []byte {
	all := []pgproto3.BackendMessage{&pgproto3.AuthenticationOk{}}
	for _, p := range parameters {
		all = append(all, &pgproto3.ParameterStatus{Name: p[0], Value: p[1]})
	}
	key := binary.BigEndian.AppendUint32(nil, n*2654435761) // looks like one; nobody cancels
	return encode(append(all, &pgproto3.BackendKeyData{ProcessID: n, SecretKey: key}, &pgproto3.ReadyForQuery{TxStatus: 'I'})...)
}

// Answers to queries: everything is a SELECT 1, but for questions about health.
var one, healthy = row("1"), row(primary...)

// row is the answer to a query with one row of text.
func row(values ...string) []byte {
	head, data := &pgproto3.RowDescription{}, &pgproto3.DataRow{}
	for _, v := range values {
		head.Fields = append(head.Fields, pgproto3.FieldDescription{Name: []byte("?column?"), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1})
		data.Values = append(data.Values, []byte(v))
	}
	return encode(head, data, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// encode returns messages of ours, which are always well formed.
func encode(all ...pgproto3.BackendMessage) (out []byte) {
	for _, m := range all {
		var err error
		if out, err = m.Encode(out); err != nil {
			panic(err)
		}
	}
	return out
}

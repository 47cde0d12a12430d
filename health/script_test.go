package health

import (
	"fmt"
	"net"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"
)

// answerer is a scripted PostgreSQL server: enough of the protocol to log in and
// to answer query. Faults of the network are the network's business.
type answerer struct {
	mu       sync.Mutex
	standby  bool
	timeline int
	refuse   *pgproto3.ErrorResponse // to every new connection
	rows     int                     // how often the row is sent, if not once
	asked    int                     // queries answered
	logins   int
	conns    map[net.Conn]bool
}

func newAnswerer() *answerer {
	return &answerer{timeline: 1, conns: map[net.Conn]bool{}}
}

func (a *answerer) serve(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		a.mu.Lock()
		a.conns[c] = true
		a.mu.Unlock()
		go a.session(c)
	}
}

// breakAll ends every connection, as the death of a server does.
func (a *answerer) breakAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		c.Close()
	}
	clear(a.conns)
}

func (a *answerer) set(change func(a *answerer)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

func (a *answerer) counts() (asked, logins int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked, a.logins
}

func (a *answerer) session(c net.Conn) {
	defer c.Close()
	b := pgproto3.NewBackend(c, c)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	a.mu.Lock()
	refuse := a.refuse
	a.logins++
	a.mu.Unlock()
	if refuse != nil {
		b.Send(refuse)
		b.Flush()
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() != nil {
		return
	}
	for {
		msg, err := b.Receive()
		if err != nil {
			return
		}
		if _, ok := msg.(*pgproto3.Query); !ok {
			return
		}
		a.answer(b)
		if b.Flush() != nil {
			return
		}
	}
}

func (a *answerer) answer(b *pgproto3.Backend) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	row := [][]byte{[]byte("1"), []byte("f"), []byte("7412345678901234567"), fmt.Appendf(nil, "%08X", a.timeline), []byte("0/5000000"), nil, []byte("f"), []byte("180006")}
	if a.standby {
		row[1], row[3], row[5], row[6] = []byte("t"), []byte(strconv.Itoa(a.timeline)), []byte("0/4000000"), []byte("t")
	}
	fields := make([]pgproto3.FieldDescription, len(row))
	for i := range fields {
		fields[i] = pgproto3.FieldDescription{Name: []byte("c"), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1}
	}
	b.Send(&pgproto3.RowDescription{Fields: fields})
	b.Send(&pgproto3.DataRow{Values: row})
	for range a.rows {
		b.Send(&pgproto3.DataRow{Values: row})
		if b.Flush() != nil {
			return
		}
	}
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
}

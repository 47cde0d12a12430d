package answers

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgproto3/v2"
)

// bender stands between clients and a real server. It passes on everything until
// it is told to say what the proxy says when it loses the server, and why then the
// connection ends. So the clients are real, and only this one message is not the
// server's.
type bender struct {
	server string
	ports  [2]int // for clients, and for who controls it

	mu       sync.Mutex
	armed    string // what it waits for: connect, statement, close, commit; empty: nothing
	heard    int    // how often a statement with the word strike came since it was armed
	sessions map[*bent]struct{}
}

// bent is one client's connection.
type bent struct {
	client, server net.Conn
	commits        map[string]bool // names of its prepared statements that commit
}

// answers are what the proxy says, by what the bender is armed with.
var answers = map[string]pgproto3.ErrorResponse{
	"idle":      {Code: "57P01", Message: "terminating connection because of a failover of the primary server"},
	"waiting":   {Code: "40001", Message: "terminating connection because of a failover of the primary server, and the transaction was rolled back"},
	"statement": {Code: "40001", Message: "terminating connection because of a failover of the primary server, and the transaction was rolled back"},
	"commit":    {Code: "08007", Message: "terminating connection because of a failover of the primary server, and it is unknown whether the transaction was committed"},
	"connect":   {Code: "57P03", Message: "there is no primary server now"},
}

// newBender stands before a server until the test ends.
func newBender(t *testing.T, server string) *bender {
	b := &bender{server: server, sessions: map[*bent]struct{}{}}
	var wg sync.WaitGroup
	for i, serve := range []func(net.Conn){b.bend, b.control} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b.ports[i] = ln.Addr().(*net.TCPAddr).Port
		wg.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(2 * time.Minute))
					serve(conn)
				})
			}
		})
		t.Cleanup(func() { ln.Close() })
	}
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for s := range b.sessions {
			s.client.Close()
		}
	})
	return b
}

// control obeys lines, and answers each when it is done:
//
//	arm WHAT     the next one that does WHAT is struck
//	strike WHAT  all sessions are told WHAT at once, which happens while they wait
//	heard        the answer is how many statements with the word strike came
func (b *bender) control(conn net.Conn) {
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		word, what, _ := strings.Cut(lines.Text(), " ")
		b.mu.Lock()
		answer := "done"
		switch word {
		case "arm":
			b.armed, b.heard = what, 0
		case "strike":
			for s := range b.sessions {
				s.tell(what)
			}
		case "heard":
			answer = fmt.Sprint(b.heard)
		}
		b.mu.Unlock()
		fmt.Fprintln(conn, answer)
	}
}

// tell says it to the client and sends nothing more; an unknown word is a plain
// close.
func (s *bent) tell(what string) {
	if s.server != nil {
		s.server.Close()
	}
	if e, ok := answers[what]; ok {
		e.Severity, e.SeverityUnlocalized = "FATAL", "FATAL"
		if text, err := e.Encode(nil); err == nil {
			s.client.Write(text)
		}
	}
	s.client.(*net.TCPConn).CloseWrite()
}

// bend serves a client.
func (b *bender) bend(conn net.Conn) {
	in := bufio.NewReader(conn)
	startup, err := readStartup(in, conn)
	if err != nil {
		return
	}
	s := &bent{client: conn, commits: map[string]bool{}}
	if b.strikes("connect") {
		s.tell("connect")
		io.Copy(io.Discard, in)
		return
	}
	if s.server, err = net.Dial("tcp", b.server); err != nil {
		return
	}
	defer s.server.Close()
	b.mu.Lock()
	b.sessions[s] = struct{}{}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.sessions, s)
	}()
	s.server.Write(startup)
	go func() { // ends with the server's side
		io.Copy(conn, s.server)
	}()
	b.follow(s, in)
	io.Copy(io.Discard, in) // until the client is gone: closing earlier would reset it
}

// follow passes on a client's messages until one is struck, or the client ends.
func (b *bender) follow(s *bent, in *bufio.Reader) {
	for {
		head, err := in.Peek(5)
		if err != nil {
			return
		}
		message := make([]byte, 1+binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(in, message); err != nil {
			return
		}
		if what := b.hears(s, message); what != "" {
			s.tell(what)
			return
		}
		s.server.Write(message)
	}
}

// hears returns what the client is to be told instead of an answer.
func (b *bender) hears(s *bent, message []byte) string {
	commits := false
	switch parts := bytes.Split(message[5:], []byte{0}); message[0] {
	case 'Q':
		commits = isCommit(parts[0])
	case 'P': // name and text
		commits = isCommit(parts[1])
		s.commits[string(parts[0])] = commits
	case 'B': // portal and name
		commits = s.commits[string(parts[1])]
	default:
		return ""
	}
	if message[0] != 'B' && bytes.Contains(message, []byte("strike")) {
		b.mu.Lock()
		b.heard++
		b.mu.Unlock()
		for _, what := range []string{"statement", "close"} {
			if b.strikes(what) {
				return what
			}
		}
	}
	if commits && b.strikes("commit") {
		return "commit"
	}
	return ""
}

func isCommit(text []byte) bool { return strings.EqualFold(string(text), "COMMIT") }

// strikes reports whether it is armed for that, and disarms it.
func (b *bender) strikes(what string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.armed != what {
		return false
	}
	b.armed = ""
	return true
}

// readStartup reads start-up packets, says no to encryption, and returns the last.
func readStartup(in io.Reader, conn net.Conn) ([]byte, error) {
	for {
		packet := make([]byte, 8)
		if _, err := io.ReadFull(in, packet); err != nil {
			return nil, err
		}
		if code := binary.BigEndian.Uint32(packet[4:]); code>>16 == 3 {
			packet = append(packet, make([]byte, binary.BigEndian.Uint32(packet)-8)...)
			_, err := io.ReadFull(in, packet[8:])
			return packet, err
		}
		conn.Write([]byte("N"))
	}
}

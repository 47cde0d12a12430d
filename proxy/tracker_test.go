package proxy

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"pgfailproxy/pgwire"
)

// message is one of protocol 3 with a right length.
func message(kind byte, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(4+len(body))), body...)
}

// spell is a message in short: its kind, and its strings, separated by "|".
// "P s1|SELECT 1" is a Parse, "B |s1" binds it to the unnamed portal, "Z T" is
// ReadyForQuery.
func spell(short string) []byte {
	kind, rest, _ := strings.Cut(short, " ")
	body := strings.ReplaceAll(rest, "|", "\x00")
	switch kind {
	case "Q", "P", "B", "E":
		body += "\x00"
	}
	return message(kind[0], body)
}

// play has the tracker see a script: "> " comes from the client, "< " from the
// server. It returns how long the client's stream is.
func play(t *testing.T, tr *tracker, script ...string) (sent int64) {
	t.Helper()
	for _, line := range script {
		f, n, err := pgwire.Next(spell(line[2:]))
		if err != nil || n == 0 {
			t.Fatalf("%q is no message: %v", line, err)
		}
		if line[0] == '>' {
			sent += f.Size
			tr.fromClient(f, sent)
		} else {
			tr.fromServer(f)
		}
	}
	return sent
}

// Where a session stands, and what is owed to its client if the server is lost.
func TestTheStateOfASession(t *testing.T) {
	const (
		nothing = "57P01" // idle: nothing was lost but the session
		undone  = "40001" // surely rolled back, or without effect
		doubt   = "08007"
	)
	for _, c := range []struct {
		script string
		state  State
		owed   string
	}{
		{"", StateIdle, nothing},
		{"> Q SELECT 1", StateBusy, doubt}, // a function may write
		{"> Q SHOW x", StateBusy, undone},
		{"> Q ", StateBusy, undone},
		{"> Q SELECT 1; < T x; < D x; < C SELECT 1; < Z I", StateIdle, nothing},
		{"> Q BEGIN", StateBusy, undone},
		{"> Q BEGIN; < C BEGIN; < Z T", StateTransaction, undone},
		{"> Q BEGIN; < Z T; > Q INSERT", StateBusy, undone},
		{"> Q BEGIN; < Z T; > Q VACUUM", StateBusy, undone}, // an error there
		{"> Q BEGIN; < Z T; > Q INSERT; < E x; < Z E", StateFailed, undone},
		{"> Q BEGIN; < Z T; > Q COMMIT", StateCommitting, doubt},
		{"> Q BEGIN; < Z T; > Q COMMIT; < C COMMIT; < Z I", StateIdle, nothing},
		{"> Q BEGIN; < Z T; > Q ROLLBACK", StateBusy, undone},
		{"> Q BEGIN; < Z T; > Q PREPARE TRANSACTION 'x'", StateCommitting, doubt},
		{"> Q BEGIN; < Z E; > Q COMMIT", StateBusy, undone}, // rolls back
		{"> Q COMMIT PREPARED 'x'", StateBusy, doubt},
		{"> Q BEGIN; < Z T; > Q INSERT\\; COMMIT", StateCommitting, doubt},
		{"> Q BEGIN; < Z T; > Q INSERT\\; UPDATE", StateBusy, undone},
		{"> Q BEGIN; < Z T; > Q ROLLBACK\\; INSERT", StateBusy, doubt},
		{"> Q BEGIN\\; INSERT", StateBusy, undone},
		{"> Q CALL p()", StateBusy, doubt},
		{"> F x", StateBusy, doubt},
		{"> Q BEGIN; < Z T; > F x", StateBusy, undone},
		// Sent before the answer to what came before.
		{"> Q BEGIN; > Q INSERT", StatePipeline, doubt}, // BEGIN may have failed
		{"> Q INSERT; > Q SHOW x", StatePipeline, doubt},
		{"> Q INSERT; > Q SHOW x; < Z I", StateBusy, undone},
		{"> Q SHOW x; > Q INSERT; < Z I", StateBusy, doubt},
		{"> Q INSERT; > Q INSERT; < Z I; < Z I", StateIdle, nothing},
		// The extended protocol.
		{"> P |INSERT; > D S", StateBusy, undone},
		{"> P |INSERT; > B |; > E ", StateBusy, undone}, // until the Sync
		{"> P |INSERT; > B |; > E ; > S ", StateBusy, doubt},
		{"> P |INSERT; > B |; > E ; > S ; < Z I", StateIdle, nothing},
		{"> P |INSERT; > B |; > S ", StateBusy, undone},
		{"> P |SHOW x; > B |; > E ; > S ", StateBusy, undone},
		{"> P |VACUUM; > B |; > E ", StateBusy, doubt},
		{"> P |BEGIN; > B |; > E ; > P |INSERT; > B |; > E ; > S ", StateBusy, undone},
		{"> P |BEGIN; > B |; > E ; > P |INSERT; > B |; > E ; > P |COMMIT; > B |; > E ", StateCommitting, doubt},
		{"> P |INSERT; > B |; > E ; > P |COMMIT; > B |; > E ", StateCommitting, doubt},
		{"> Q BEGIN; < Z T; > P |INSERT; > B |; > E ; > S ", StateBusy, undone},
		{"> Q BEGIN; < Z T; > P |COMMIT; > B |; > E ", StateCommitting, doubt},
		{"> P |INSERT; > B |; > E ; > S ; > P |SHOW x; > B |; > E ; > S ", StatePipeline, doubt},
		{"> P |INSERT; > B |; > E ; > S ; > P |SHOW x; > B |; > E ; > S ; < Z I", StateBusy, undone},
		// Prepared once, executed later.
		{"> P c|COMMIT; > S ; < Z I; > Q BEGIN; < Z T; > B |c; > E ; > S ", StateCommitting, doubt},
		{"> P c|SELECT 1; > S ; < Z I; > Q BEGIN; < Z T; > B |c; > E ; > S ", StateBusy, undone},
		{"> P c|COMMIT; > S ; < Z I; > P c|SELECT 1; > S ; < E x; < Z I; > Q BEGIN; < Z T; > B |c; > E ; > S ", StateCommitting, doubt},
		{"> P |COMMIT; > S ; < Z I; > Q BEGIN; < Z T; > B |; > E ; > S ", StateCommitting, doubt},
		{"> P |COMMIT; > S ; < Z I; > P |SELECT; > S ; < E x; < Z I; > Q BEGIN; < Z T; > B |; > E ; > S ", StateCommitting, doubt},
		{"> P c|COMMIT; > S ; < Z I; > Q BEGIN; < Z T; > B p|c; > S ; < Z T; > E p; > S ", StateCommitting, doubt},
		{"> Q BEGIN; < Z T; > P |SELECT 1; > B p|; > E p; > S ", StateBusy, undone},
		// COPY.
		{"> Q COPY t FROM STDIN", StateBusy, undone},
		{"> Q COPY t FROM STDIN; < G x; > d x", StateCopyIn, undone},
		{"> Q COPY t FROM STDIN; < G x; > d x; > c ", StateBusy, doubt},
		{"> Q COPY t FROM STDIN; < G x; > d x; > f no", StateBusy, undone},
		{"> Q COPY t FROM STDIN; < G x; > d x; > c ; < C COPY 1; < Z I", StateIdle, nothing},
		{"> Q COPY t FROM STDIN; < G x; > d x; < E x; < Z I; > c ", StateIdle, nothing},
		{"> Q BEGIN; < Z T; > Q COPY t FROM STDIN; < G x; > d x; > c ", StateBusy, undone},
		{"> Q COPY t TO STDOUT; < H x; < d x", StateCopyOut, undone},
		{"> Q COPY (DELETE FROM t RETURNING *) TO STDOUT; < H x; < d x", StateCopyOut, doubt},
		{"> Q COPY t TO STDOUT; < H x; < d x; < c ; < C COPY 1; < Z I", StateIdle, nothing},
		// In the extended protocol a Sync before the data's end is ignored.
		{"> P |COPY t FROM STDIN; > B |; > E ; > S ; < G x; > d x", StateCopyIn, undone},
		{"> P |COPY t FROM STDIN; > B |; > E ; > S ; < G x; > d x; > c ", StateBusy, undone},
		{"> P |COPY t FROM STDIN; > B |; > E ; > S ; < G x; > d x; > c ; > S ", StateBusy, doubt},
		{"> P |COPY t FROM STDIN; > B |; > E ; > S ; < G x; > d x; > c ; > S ; < Z I", StateIdle, nothing},
		{"> P |COPY t FROM STDIN; > B |; > E ; > H ; < G x; > d x; > c ; > S ; < Z I", StateIdle, nothing},
		{"> P |COPY t FROM STDIN; > B |; > E ; > S ; < G x; > d x; < E x; > f ; > S ; < Z I", StateIdle, nothing},
		// Where the two sides no longer match, nothing is promised.
		{"< Z I", StateIdle, doubt},
		{"> P |COPY t FROM STDIN; > B |; > E ; > S ; > d x; > c ; > S ; < Z I", StateIdle, doubt},
	} {
		tr := newTracker(false)
		var sent int64
		if c.script != "" {
			var lines []string
			for line := range strings.SplitSeq(strings.ReplaceAll(c.script, `\;`, "\x01"), "; ") {
				lines = append(lines, strings.ReplaceAll(line, "\x01", ";"))
			}
			sent = play(t, &tr, lines...)
		}
		if got := tr.state(); got != c.state {
			t.Errorf("%s: %s, want %s", c.script, got, c.state)
		}
		if got := tr.owed(sent); got != c.owed {
			t.Errorf("%s: owed %s, want %s", c.script, got, c.owed)
		}
	}
}

func TestWhatTheServerDidNotGetWholeIsNotInDoubt(t *testing.T) {
	tr := newTracker(false)
	before := play(t, &tr, "> Q BEGIN", "< Z T", "> Q INSERT", "< Z T")
	f, _, _ := pgwire.Next(spell("Q COMMIT"))
	end := before + f.Size
	tr.fromClient(f, end)
	if tr.inDoubt(end-1) || !tr.inDoubt(end) {
		t.Error("a COMMIT is in doubt from its last byte on, and not before")
	}
	tr = newTracker(false)
	first := play(t, &tr, "> Q INSERT")
	f, _, _ = pgwire.Next(spell("Q DELETE"))
	tr.fromClient(f, first+f.Size)
	if tr.inDoubt(first-1) || !tr.inDoubt(first) {
		t.Error("of two statements the first is in doubt once it is there, whatever became of the second")
	}
}

func TestALargeStatementIsJudgedByItsBeginning(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	for text, want := range map[string]string{
		"P |INSERT INTO t VALUES ('": "40001", "P |SELECT '": "40001", "P |/* ": "08007", "P |COMMIT /* ": "08007",
		"Q INSERT INTO t VALUES ('": "08007", // a COMMIT may follow
	} {
		tr := newTracker(false)
		sent := play(t, &tr, "> Q BEGIN", "< Z T")
		f, _, err := pgwire.Next(spell(text + large)[:pgwire.MaxWhole])
		if err != nil || f.Rest == 0 {
			t.Fatal(f.Rest, err)
		}
		sent += f.Size
		tr.fromClient(f, sent)
		if f.Kind == 'P' {
			sent += play(t, &tr, "> B |", "> E ", "> S ")
		}
		if got := tr.owed(sent); got != want {
			t.Errorf("%s: owed %s, want %s", text, got, want)
		}
	}
}

func TestNamesBeyondTheLimitAreNotForgottenSilently(t *testing.T) {
	tr := newTracker(false)
	for i := range maxOddNames + 1 {
		play(t, &tr, fmt.Sprintf("> P n%d|SHOW x", i))
	}
	play(t, &tr, "> P last|COMMIT", "> S ", "< Z I", "> Q BEGIN", "< Z T")
	if len(tr.odd) > maxOddNames {
		t.Errorf("%d names are kept", len(tr.odd))
	}
	sent := play(t, &tr, "> B |last", "> E ")
	if got := tr.owed(sent + 1<<20); got != "08007" {
		t.Errorf("a COMMIT whose name found no room: %s", got)
	}
}

func TestFollowingAllocatesNothing(t *testing.T) {
	tr := newTracker(false)
	var frames []pgwire.Frame
	for _, line := range []string{"Q UPDATE t SET a = 1 WHERE b = 2; SELECT 1", "P |SELECT 1", "B |s1", "E ", "S "} {
		f, _, _ := pgwire.Next(spell(line))
		frames = append(frames, f)
	}
	z, _, _ := pgwire.Next(spell("Z I"))
	if n := testing.AllocsPerRun(100, func() {
		for _, f := range frames {
			tr.fromClient(f, 1)
		}
		tr.fromServer(z)
		tr.fromServer(z)
	}); n > 0 {
		t.Errorf("%v allocations for a round of messages", n)
	}
}

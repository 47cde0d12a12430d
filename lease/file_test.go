package lease

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgfailproxy/cluster"
)

var first = cluster.Record{
	Revision: 1, Epoch: 1, System: 7412345678901234567, Timeline: 1, Primary: "pg1",
	Seen: cluster.Position{Timeline: 1, LSN: 0x3000060}, SeenAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
}

func open(t *testing.T, path string) *File {
	t.Helper()
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRecordOutlivesItsWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	f := open(t, path)
	if !f.Record().IsZero() {
		t.Fatalf("a new file holds %v", f.Record())
	}
	held := first
	held.Revision, held.Epoch, held.Held, held.Candidate = 2, 2, true, "pg2"
	for _, rec := range []cluster.Record{first, held} {
		if err := f.Store(rec); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	got := open(t, path).Record()
	if got.String() != held.String() || got.Seen != held.Seen || !got.SeenAt.Equal(held.SeenAt) || got.System != held.System {
		t.Fatalf("read %+v, stored %+v", got, held)
	}
}

func TestOnlyOneProcessMayDecide(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	f := open(t, path)
	if _, err := OpenFile(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("second open: %v, want ErrInUse", err)
	}
	f.Close()
	open(t, path)
}

func TestOnlyTheSuccessorIsStored(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "record"))
	if err := f.Store(first); err != nil {
		t.Fatal(err)
	}
	for _, revision := range []uint64{0, 1, 3} {
		rec := first
		rec.Revision = revision
		if err := f.Store(rec); !errors.Is(err, ErrStale) {
			t.Errorf("revision %d over 1: %v, want ErrStale", revision, err)
		}
	}
	invalid := first
	invalid.Revision, invalid.Primary = 2, ""
	if err := f.Store(invalid); err == nil {
		t.Error("a record without a primary was stored")
	}
	if f.Record().Revision != 1 {
		t.Errorf("revision is %d after refused writes, want 1", f.Record().Revision)
	}
}

// Whatever is wrong with the file is told, never guessed, and the file is kept.
func TestBadFilesAreRefusedAndKept(t *testing.T) {
	good, err := encode(first)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct{ data, want string }{
		"empty":          {"", "truncated"},
		"truncated":      {string(good[:len(good)/2]), "truncated"},
		"foreign JSON":   {`{"some":"thing"}`, "not a record"},
		"foreign text":   {"# my notes\n", "not a record"},
		"newer version":  {strings.Replace(string(good), `"version": 1`, `"version": 2`, 1), "newer pgfailproxy"},
		"edited":         {strings.Replace(string(good), "pg1", "pg2", 1), "checksum"},
		"huge":           {strings.Repeat("x", maxSize+1), "bytes"},
		"without record": {`{"format":"pgfailproxy record","version":1}`, "checksum"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "record")
			if err := os.WriteFile(path, []byte(c.data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := OpenFile(path)
			var bad *BadRecordError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want a BadRecordError that says %q", err, c.want)
			}
			if data, _ := os.ReadFile(path); string(data) != c.data {
				t.Fatal("the file was changed")
			}
		})
	}
}

// A crash between the steps of a write leaves a temporary file behind; it must
// neither be read nor stand in the way.
func TestAnUnfinishedWriteChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	f := open(t, path)
	if err := f.Store(first); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.WriteFile(path+".tmp", []byte(`{"format":"pgfail`), 0o600); err != nil {
		t.Fatal(err)
	}
	f = open(t, path)
	if f.Record().Revision != 1 {
		t.Fatalf("read %v", f.Record())
	}
	next := first
	next.Revision = 2
	if err := f.Store(next); err != nil {
		t.Fatal(err)
	}
}

func TestAnUnwritableFolderIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no", "such", "record")
	if _, err := OpenFile(path); err == nil || !strings.Contains(err.Error(), "folder must exist") {
		t.Fatalf("got %v", err)
	}
}

package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"pgfailproxy/cluster"
)

// ErrInUse means that another process holds the right to decide.
var ErrInUse = errors.New("in use by another pgfailproxy")

// ErrStale means that a Record was to be stored that is not the successor of
// the one in the file. Nothing was written.
var ErrStale = errors.New("the record is not the successor of the stored one")

// BadRecordError says that a Record file cannot be understood. It is never
// guessed at and never overwritten.
type BadRecordError struct {
	Path   string
	Reason string
}

func (e *BadRecordError) Error() string {
	return fmt.Sprintf("record file %s: %s; nothing was changed: restore the file, or, once you are sure which server is the primary, move it away and start again", e.Path, e.Reason)
}

const (
	// format tells our files from others.
	format = "pgfailproxy record"
	// version is that of the file's layout. A reader refuses a higher one.
	version = 1
	// maxSize bounds what is read, in bytes; a Record takes some hundred.
	maxSize = 1 << 20
)

// envelope is the layout of the file: JSON, so that a person can read it.
type envelope struct {
	Format   string          `json:"format"`
	Version  int             `json:"version"`
	Checksum string          `json:"crc32c"` // of the compact JSON in Record
	Record   json.RawMessage `json:"record"`
}

// File is a Record in a file, and the exclusive right to write it. It is not
// safe for concurrent use: one goroutine decides, and it alone stores.
type File struct {
	path string
	lock *os.File
	last cluster.Record
}

// OpenFile takes the right to decide and reads the Record. It returns ErrInUse
// when another process has the right, and a *BadRecordError when the file is
// truncated, foreign, damaged or of a newer version. The caller closes the
// File, which gives the right back; a crash does too.
func OpenFile(path string) (*File, error) {
	// The lock is a file of its own: the Record's is replaced with every write.
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record %q: its folder must exist and be writable: %w", path, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("record %q: %w: stop it, or give this one another record file", path, ErrInUse)
		}
		return nil, fmt.Errorf("lock %q: %w", path+".lock", err)
	}
	rec, err := Read(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &File{path: path, lock: lock, last: rec}, nil
}

// Record returns the last Record that was read or stored; zero if there is
// none.
func (f *File) Record() cluster.Record { return f.last }

// Store makes rec durable: once it returns nil, every later start reads rec or
// a successor. It returns ErrStale unless rec's revision is the next one. After
// any other error the file holds either the old Record or rec, whole.
func (f *File) Store(rec cluster.Record) error {
	if rec.Revision != f.last.Revision+1 {
		return fmt.Errorf("store revision %d over %d: %w", rec.Revision, f.last.Revision, ErrStale)
	}
	if err := rec.Check(); err != nil {
		return fmt.Errorf("store record: %w", err)
	}
	data, err := encode(rec)
	if err != nil {
		return err
	}
	if err := replace(f.path, data); err != nil {
		return fmt.Errorf("store record: %w", err)
	}
	f.last = rec
	return nil
}

// Close gives the right to decide back.
func (f *File) Close() error { return f.lock.Close() }

// Read returns the Record in a file without any right to it; the zero Record if
// there is no file. It returns a *BadRecordError as OpenFile does.
func Read(path string) (cluster.Record, error) {
	var rec cluster.Record
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, fmt.Errorf("read record: %w", err)
	}
	bad := func(format string, args ...any) (cluster.Record, error) {
		return cluster.Record{}, &BadRecordError{Path: path, Reason: fmt.Sprintf(format, args...)}
	}
	if !info.Mode().IsRegular() {
		return bad("it is not a regular file")
	}
	if info.Size() > maxSize {
		return bad("it has %d bytes; a record never has that many", info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return rec, fmt.Errorf("read record: %w", err)
	}
	var env envelope
	if err := json.Unmarshal(data, &env); err != nil {
		return bad("it is truncated or not a record (%v)", err)
	}
	if env.Format != format {
		return bad("it is not a record of pgfailproxy")
	}
	if env.Version > version {
		return bad("it was written by a newer pgfailproxy (layout %d, this one knows %d)", env.Version, version)
	}
	if env.Version < 1 {
		return bad("layout %d does not exist", env.Version)
	}
	compact, err := json.Marshal(env.Record) // RawMessage: compacted, not re-interpreted
	if err != nil {
		return bad("the record in it is not JSON (%v)", err)
	}
	if got := checksum(compact); got != env.Checksum {
		return bad("its checksum is %s, its content gives %s: it was damaged or edited", env.Checksum, got)
	}
	if err := json.Unmarshal(compact, &rec); err != nil {
		return bad("the record in it cannot be read (%v)", err)
	}
	if err := rec.Check(); err != nil {
		return bad("%v", err)
	}
	return rec, nil
}

func encode(rec cluster.Record) ([]byte, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	data, err := json.MarshalIndent(envelope{Format: format, Version: version, Checksum: checksum(body), Record: body}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return append(data, '\n'), nil
}

func checksum(b []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// replace writes data to path so that a crash at any moment leaves the old file
// or the new one: write beside it, fsync, rename, fsync the folder.
func replace(path string, data []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(tmp) // a full disk: do not keep what does not help
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

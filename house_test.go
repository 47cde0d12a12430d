// Package pgfailproxy_test keeps the shape of the house: who may depend on whom.
package pgfailproxy_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "pgfailproxy"

// arrows says for each package which packages of ours it may import outside its
// tests. A package that is not listed fails the test, so that each new one is
// given its place. ARCHITECTURE.md draws the same.
var arrows = map[string][]string{
	"cluster":           {},
	"health":            {"cluster"},
	"failover":          {"cluster"},
	"promote":           {"cluster"},
	"lease":             {"cluster"},
	"admin":             {"cluster"},
	"config":            {"hba"},
	"hba":               {},
	"pgwire":            {},
	"relay":             {},
	"verifier":          {"cluster"},
	"proxy":             {"cluster", "hba", "pgwire", "relay", "internal/tcp"},
	"internal/certs":    {},
	"internal/tcp":      {},
	"internal/memnet":   {},
	"internal/history":  {},
	"internal/pgserver": {},
	"internal/pgtest":   {"internal/pgserver"},
	"e2e":               {},
	"e2e/stack":         {"admin"},
	"e2e/clients/pgx":   {},
	"bench":             {"admin", "e2e/stack", "internal/pgserver"},
	"cmd/pgfailproxy": {"admin", "cluster", "config", "failover", "health", "internal/certs", "internal/history", "internal/pgserver", "internal/tcp",
		"lease", "promote", "proxy", "verifier"},
}

// keepers says who alone may import a library outside tests, because the
// knowledge of it belongs in one place.
var keepers = map[string][]string{
	// Its decoders panic or never end on hostile input: it may encode what the
	// proxy says, and decodes nothing.
	"github.com/jackc/pgproto3/v2": {"pgwire"},
	"github.com/jackc/pgx/v5":      {"health", "promote", "verifier", "config", "cmd/pgfailproxy", "bench", "internal/pgtest", "e2e/stack", "e2e/clients/pgx"},
	"github.com/spf13/pflag":       {"config", "cmd/pgfailproxy", "bench"},
	"go.yaml.in/yaml/v3":           {"config"},
}

// pure packages and files do no I/O and read no clock.
// See also TestTheDecisionReadsNoClock.
var pure = map[string][]string{
	"cluster": {"net", "os", "io", "sync", "context"},
	"hba":     {"net", "os", "io", "sync", "context", "time"},
}

// source is a Go file outside tests.
type source struct {
	folder, path string
	imports      []string
	doc          string
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.ImportsOnly)
		if err != nil {
			return err
		}
		s := source{folder: filepath.ToSlash(filepath.Dir(path)), path: path, doc: file.Doc.Text()}
		for _, i := range file.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, name)
		}
		all = append(all, s)
		return nil
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	return all
}

func TestArrowsGoOneWay(t *testing.T) {
	used := map[string]bool{}
	defer func() {
		for folder, all := range arrows {
			for _, to := range all {
				if !used[folder+" "+to] {
					t.Errorf("nobody uses the arrow from %s to %s: take it out", folder, to)
				}
			}
		}
	}()
	for _, s := range sources(t) {
		allowed, known := arrows[s.folder]
		if !known {
			t.Errorf("%s: package %s has no place in the house: give it one in arrows and in ARCHITECTURE.md", s.path, s.folder)
		}
		for _, name := range s.imports {
			ours, ok := strings.CutPrefix(name, module+"/")
			used[s.folder+" "+ours] = ok
			if ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s: %s may import only %v", s.path, ours, s.folder, allowed)
			}
			for library, folders := range keepers {
				if (name == library || strings.HasPrefix(name, library+"/")) && !slices.Contains(folders, s.folder) {
					t.Errorf("%s imports %s: only %v may", s.path, name, folders)
				}
			}
			if slices.Contains(pure[s.folder], name) {
				t.Errorf("%s imports %s: %s does no I/O", s.path, name, s.folder)
			}
		}
	}
}

func TestTheDecisionReadsNoClock(t *testing.T) {
	for _, s := range sources(t) {
		if s.folder != "failover" || strings.HasSuffix(s.path, "controller.go") {
			continue
		}
		data, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"time.Now(", "time.After(", "time.Since(", "time.Until(", "go func", "chan "} {
			if strings.Contains(string(data), word) {
				t.Errorf("%s contains %q: only the controller has a clock and goroutines", s.path, word)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	docs := map[string]int{}
	for _, s := range sources(t) {
		if s.doc != "" {
			docs[s.folder]++
		} else {
			docs[s.folder] += 0
		}
	}
	for folder, n := range docs {
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", folder, n)
		}
	}
}

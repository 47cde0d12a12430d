package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// The major versions that this package and its callers know.
const (
	oldest = 15
	newest = 18
)

// ErrNotInstalled means that no usable PostgreSQL was found on this machine.
var ErrNotInstalled = errors.New("PostgreSQL's server programs were not found")

// Install is one installation of PostgreSQL's programs.
type Install struct {
	// Bin is the folder that holds postgres, initdb and pg_basebackup.
	Bin string
	// Major is the major version, such as 18.
	Major int
	// owner runs the programs; nil means the user of this process.
	owner *owner
}

// places are the folders where packages put PostgreSQL, beside PATH.
var places = []string{
	"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
	"/usr/pgsql-*/bin",                  // PGDG's RPMs
	"/usr/lib/postgresql*/bin",          // SUSE, Gentoo
	"/usr/libexec/postgresql*",          // Alpine
	"/opt/homebrew/opt/postgresql*/bin", // Homebrew on Apple silicon
	"/usr/local/opt/postgresql*/bin",    // Homebrew on Intel
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/usr/local/pgsql/bin", // from source
}

// Find returns the newest PostgreSQL of a known version on this machine: from
// PATH, from pg_config, or from the folders that packages use. The error wraps
// ErrNotInstalled and says what to install.
//
// PostgreSQL refuses to run as root. Where this process is root, its servers
// run as the user postgres if there is one, and as nobody otherwise.
func Find() (Install, error) {
	var best Install
	var unknown []string
	for _, bin := range candidates() {
		major, err := version(bin)
		switch {
		case err != nil:
		case major < oldest || major > newest:
			unknown = append(unknown, fmt.Sprintf("%s is version %d", bin, major))
		case major > best.Major:
			best = Install{Bin: bin, Major: major}
		}
	}
	if best.Major == 0 {
		found := ""
		if len(unknown) > 0 {
			found = " (" + strings.Join(unknown, ", ") + ")"
		}
		return Install{}, fmt.Errorf("%w%s: versions %d to %d are supported; install the package postgresql (Debian, Ubuntu, Homebrew) or postgresql-server (Fedora, RHEL), or put the folder that holds postgres, initdb and pg_basebackup in PATH",
			ErrNotInstalled, found, oldest, newest)
	}
	var err error
	if best.owner, err = findOwner(); err != nil {
		return Install{}, err
	}
	return best, nil
}

// candidates lists every folder that holds all programs needed.
func candidates() []string {
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		// PATH may hold a link to one program only; its siblings are beside
		// what it points to.
		if real, err := filepath.EvalSymlinks(p); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range places {
		found, _ := filepath.Glob(pattern) // fails only on a bad pattern
		dirs = append(dirs, found...)
	}
	complete := dirs[:0]
	for _, dir := range dirs {
		if hasPrograms(dir) {
			complete = append(complete, dir)
		}
	}
	return complete
}

func hasPrograms(dir string) bool {
	for _, name := range []string{"postgres", "initdb", "pg_basebackup"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

var versionNumber = regexp.MustCompile(`\) (\d+)`)

// version asks the server program for its major version.
func version(bin string) (int, error) {
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", bin, err)
	}
	m := versionNumber.FindSubmatch(out) // postgres (PostgreSQL) 18.6 (Debian 18.6-1)
	if m == nil {
		return 0, fmt.Errorf("%s/postgres says %q, which is no version", bin, out)
	}
	return strconv.Atoi(string(m[1]))
}

// run runs one of PostgreSQL's programs to its end in dir. On failure the error
// holds the end of what it printed.
func (in Install) run(ctx context.Context, dir string, extraEnv []string, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(in.Bin, program), args...)
	cmd.Dir = dir // the folder of this process may be closed to the other user
	cmd.Env = append(environ(), extraEnv...)
	cmd.SysProcAttr = in.owner.attributes()
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", program, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(tail(string(out), 2<<10)))
	}
	return nil
}

// environ is the environment for PostgreSQL's programs: ours without libpq's
// variables, which would lead them to another server, and in English, because
// messages are looked at.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG") {
			env = append(env, kv)
		}
	}
	return append(env, "LC_ALL=C")
}

// tail returns the last n bytes of s, from the start of a line if it cuts.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	if _, rest, ok := strings.Cut(s, "\n"); ok {
		return rest
	}
	return s
}

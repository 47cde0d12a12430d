// Command pgfailproxy keeps one port on the primary of a PostgreSQL cluster: it
// sends every session to the primary, and promotes a standby when that dies.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"pgfailproxy/config"
)

// version is set when a release is built: -ldflags "-X main.version=...".
var version = "development"

// command is one thing that the program can do.
type command struct {
	name  string
	about string // one line
	run   func(ctx context.Context, args []string, std streams) error
}

// streams are where a command writes.
type streams struct{ out, err io.Writer }

func commands() []command {
	return []command{
		{"run", "run the proxy (the default)", runCommand},
		{"check", "read the configuration, ask the servers, say what is wrong and how to mend it", checkCommand},
		{"setup", "give the proxy's role on the primary what it needs", setupCommand},
		{"status", "show what a running proxy knows", statusCommand},
		{"demo", "show a failover on this machine, with a primary and a standby of its own", demoCommand},
		{"version", "print the version", versionCommand},
	}
}

// errUsage is an error that was already told, with a hint.
var errUsage = errors.New("usage")

// exitCode is an error with an exit code of its own; what there was to say was
// said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	var code exitCode
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		os.Exit(2)
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		fmt.Fprintf(os.Stderr, "pgfailproxy: %v\n", err)
		os.Exit(1)
	}
}

// run carries out the command that args name.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	std := streams{stdout, stderr}
	name := "run"
	if len(args) > 0 && (args[0] == "help" || args[0] == "-h" || args[0] == "--help") {
		usage(stdout)
		return nil
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	all := commands()
	i := slices.IndexFunc(all, func(c command) bool { return c.name == name })
	if i < 0 {
		fmt.Fprintf(stderr, "pgfailproxy: there is no command %q: see pgfailproxy --help\n", name)
		return errUsage
	}
	return all[i].run(ctx, args, std)
}

func usage(w io.Writer) {
	fmt.Fprint(w, "pgfailproxy is one port that follows the primary of a PostgreSQL cluster.\n\nUsage:\n  pgfailproxy [command] [flags]\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-9s %s\n", c.name, c.about)
	}
	fmt.Fprint(w, "\nEach command has a --help of its own.\n")
}

// flags returns an empty set of flags for a command. use is how it is called.
func flags(name, use string, std streams) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(std.err)
	fs.Usage = func() {
		fmt.Fprintf(std.out, "%s\n\nFlags:\n%s", use, fs.FlagUsages())
	}
	return fs
}

// parse parses args. done means that there is nothing more to do: help was
// asked for, or err is to be returned.
func parse(fs *pflag.FlagSet, args []string, std streams) (done bool, err error) {
	err = fs.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return true, nil
	case err != nil:
		err = config.FlagError(fs, err) // pflag's own text may repeat a password
	case fs.NArg() > 0:
		// Not shown: it may be a connection string that was not quoted.
		err = fmt.Errorf("there is an argument too many (number %d of those that are not flags): flags begin with --, and the value of --member is quoted as one", fs.NArg())
	}
	if err != nil {
		fmt.Fprintf(std.err, "pgfailproxy %s: %v: see pgfailproxy %s --help\n", fs.Name(), err, fs.Name())
		return true, errUsage
	}
	return false, nil
}

func versionCommand(_ context.Context, args []string, std streams) error {
	fs := flags("version", "Usage: pgfailproxy version\n\nPrints the version of this program.", std)
	if done, err := parse(fs, args, std); done {
		return err
	}
	fmt.Fprintln(std.out, versionText())
	return nil
}

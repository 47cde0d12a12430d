package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

// call runs the program as a user does, and returns what it printed and its
// error.
func call(args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	err = run(context.Background(), args, &out, &errs)
	return out.String(), errs.String(), err
}

func TestEveryCommandHasHelp(t *testing.T) {
	out, _, err := call("--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands() {
		if !strings.Contains(out, c.name) {
			t.Errorf("--help does not name %s", c.name)
		}
		help, _, err := call(c.name, "--help")
		if err != nil || !strings.HasPrefix(help, "Usage: pgfailproxy") {
			t.Errorf("%s --help: %q, %v", c.name, help, err)
		}
	}
}

// Whatever is wrong with a call, the user gets one line that names it, and no
// secret.
func TestAWrongCallIsOneLine(t *testing.T) {
	for name, args := range map[string][]string{
		"unknown command":    {"promote"},
		"unknown flag":       {"run", "--bogus"},
		"flag as default":    {"--bogus"},
		"argument":           {"run", "host=pg1", "password=hunter2"},
		"one dash":           {"run", "-member=pg1=host=x password=hunter2"},
		"no members":         {"run"},
		"bad member":         {"run", "--member", "pg1=postgres://u:hunter2@:bad/"},
		"no such file":       {"run", "--config", "/no/such/file.yaml"},
		"impossible":         {"check", "--member", "pg1=host=x password=hunter2", "--hold-timeout", "1s"},
		"status of nothing":  {"status", "--admin", "127.0.0.1:1"},
		"status of nonsense": {"status", "--admin", "nonsense"},
		"demo":               {"demo", "--writing", "0s"},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, err := call(args...)
			if err == nil {
				t.Fatal("no error")
			}
			text := errs
			if !errors.Is(err, errUsage) {
				text += err.Error()
			}
			text = strings.TrimSpace(text)
			if out != "" || text == "" || strings.Contains(text, "\n") {
				t.Errorf("stdout %q, want one line of error: %q", out, text)
			}
			if strings.Contains(text, "hunter2") {
				t.Errorf("the password is shown: %q", text)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	if out, _, err := call("version"); err != nil || !strings.HasPrefix(out, "pgfailproxy ") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestLogsAreTextForPeopleAndJSONForPrograms(t *testing.T) {
	var b bytes.Buffer
	newLogger(&b, "auto", 0).Info("hello", "took", 1500000000)
	if !strings.HasPrefix(b.String(), "{") {
		t.Errorf("not a terminal, but %q", b.String())
	}
	b.Reset()
	newLogger(&b, "text", 0).Info("hello")
	if !strings.Contains(b.String(), "msg=hello") {
		t.Errorf("%q", b.String())
	}
	if isTerminal(io.Discard) {
		t.Error("io.Discard is taken for a terminal")
	}
}

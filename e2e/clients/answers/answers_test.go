// Package answers tries what real drivers make of each thing that the proxy says
// when it has lost the server, and keeps the table in docs/clients.md true.
package answers

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgfailproxy/internal/pgserver"
	"pgfailproxy/internal/pgtest"
)

var update = flag.Bool("update", false, "write the table into docs/clients.md")

const (
	document = "../../../docs/clients.md"
	begin    = "<!-- tried -->\n"
	end      = "<!-- /tried -->"
	jars     = "/usr/share/java/postgresql.jar:/usr/share/java/HikariCP.jar:/usr/share/java/slf4j-api.jar:/usr/share/java/slf4j-nop.jar"
)

// programs try the drivers of one language each.
var programs = []struct {
	language string
	command  []string
	needs    string // a shell command that succeeds where the drivers are; empty: Go has them
}{
	{"Go", []string{"go", "-C", "../pgx", "run", "."}, ""},
	{"Python", []string{"/usr/bin/python3", "answers.py"}, "/usr/bin/python3 -c 'import psycopg2, psycopg, psycopg_pool, sqlalchemy, django'"},
	{"JavaScript", []string{"node", "answers.js"}, `node -e 'require("pg")'`},
	{"Java", []string{"java", "-cp", jars, "Answers.java"}, "java --list-modules | grep jdk.compiler && ls $(echo " + jars + " | tr : ' ')"},
	{"Ruby", []string{"ruby", "answers.rb"}, "ruby -e 'require \"active_record\"; require \"pg\"'"},
}

// columns of the table, by the bender's words.
var columns = []struct{ name, head string }{
	{"idle", "`57P01` while idle"},
	{"waiting", "`40001` idle in a transaction"},
	{"statement", "`40001` to a statement"},
	{"commit", "`08007` to COMMIT"},
	{"close", "plain close"},
	{"connect", "`57P03` while connecting"},
}

func TestTheTableOfWhatDriversMakeOfAnswersIsTrue(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	table, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no part from %s to %s", document, begin, end)
	}
	server := pgtest.Primary(t, pgserver.Options{})
	rows := head()
	for _, p := range programs {
		t.Run(p.language, func(t *testing.T) {
			if p.needs != "" {
				find(t, p.needs)
			}
			b := newBender(t, server.Addr())
			out := run(t, append(p.command, strconv.Itoa(b.ports[0]), strconv.Itoa(b.ports[1])))
			for _, row := range format(t, out) {
				rows += row
				if !*update && !strings.Contains(table, row) {
					t.Errorf("the table (-update writes it) lacks:\n%s", row)
				}
			}
		})
	}
	if !*update || t.Failed() {
		return
	}
	if err := os.WriteFile(document, []byte(before+begin+rows+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// find skips the test where drivers are not installed; CI has every one.
func find(t *testing.T, needs string) {
	out, err := shell(t, "sh", "-c", needs).CombinedOutput()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true" || *update:
		t.Fatalf("drivers were not found: .ci/clients installs them: %s", out)
	default:
		t.Skipf("drivers were not found: .ci/clients installs them, as root on Debian: %s", out)
	}
}

func run(t *testing.T, command []string) string {
	cmd := shell(t, command...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", command, err, out, said.String())
	}
	return string(out)
}

// shell is a command that knows where Node's packages are, and ends with the test.
func shell(t *testing.T, command ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "NODE_PATH=/usr/local/share/nodejs:/usr/share/nodejs")
	return cmd
}

func head() string {
	names, line := "| client |", "|---|"
	for _, c := range columns {
		names, line = names+" "+c.head+" |", line+"---|"
	}
	return names + "\n" + line + "\n"
}

// format makes rows of the table from lines of a program.
func format(t *testing.T, out string) []string {
	var clients []string
	cells := map[string]string{} // by client and column
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 6 {
			t.Fatalf("not a line of a table: %s", line)
		}
		if len(clients) == 0 || clients[len(clients)-1] != f[0] {
			clients = append(clients, f[0])
		}
		cells[f[0]+f[1]] = cell(f[2], f[3], f[4], f[5])
	}
	var rows []string
	for _, client := range clients {
		row := "| " + client + " |"
		for _, c := range columns {
			if cells[client+c.name] == "" {
				t.Errorf("%s: nothing is said of %s", client, c.name)
			}
			row += " " + cells[client+c.name] + " |"
		}
		rows = append(rows, row+"\n")
	}
	return rows
}

// cell says what was raised, and what else is worth a word: a next use that does
// not work either, and a statement that the client sent again by itself.
func cell(raised, code, next, heard string) string {
	text := "`" + code + "`, " + raised
	switch {
	case raised == "works":
		text = "not felt"
	case code == "":
		text = "no code, " + raised
	}
	if next != "works" {
		text += "; then " + next
	}
	if n, _ := strconv.Atoi(heard); n > 1 {
		text += fmt.Sprintf("; sent %d times", n)
	}
	return text
}

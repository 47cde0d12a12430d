package config

import (
	"os"
	"strings"
	"testing"
)

func TestEverySettingIsWholeAndItsOwn(t *testing.T) {
	seen := make(map[string]bool)
	c := new(Config)
	if err := c.setDefaults(); err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		for _, name := range []string{s.key, "--" + s.flag(), s.env()} {
			if seen[name] {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
		if s.help == "" || s.kind == "" || strings.HasSuffix(s.help, ".") || strings.ContainsRune(s.help, '\n') {
			t.Errorf("%s: help %q", s.key, s.help)
		}
		if s.key == membersKey {
			continue
		}
		if got := s.get(c); got != s.def {
			t.Errorf("%s: the default %q reads back as %q", s.key, s.def, got)
		}
		// What zero means is documented exactly where zero is accepted.
		zero := strings.Trim(s.zeroWord(), `"`)
		if err := s.set(new(Config), zero); (err == nil) != (s.zero != "") {
			t.Errorf("%s: zero is %q in the table, and setting it gives %v", s.key, s.zero, err)
		}
	}
}

func TestSizesAndDurationsReadBackAsWritten(t *testing.T) {
	for text, want := range map[string]string{
		"0": "0", "1000": "1000", "1024": "1KiB", "16MiB": "16MiB", "16MB": "16MiB", "1 GB": "1GiB", "8kB": "8KiB", "1B": "1", "1025": "1025",
	} {
		n, err := parseSize(text)
		if err != nil || formatSize(n) != want {
			t.Errorf("%s: %s, %v; want %s", text, formatSize(n), err, want)
		}
	}
	for text, want := range map[string]string{"0": "0", "60s": "1m", "90s": "1m30s", "60m": "1h", "3661s": "1h1m1s", "1.5s": "1.5s", "24h": "24h", "10m": "10m"} {
		d, err := parseDuration(text, true)
		if err != nil || formatDuration(d) != want {
			t.Errorf("%s: %s, %v; want %s", text, formatDuration(d), err, want)
		}
	}
}

func TestTheReadmeHasTheTableOfSettings(t *testing.T) {
	const path, begin, end = "../README.md", "<!-- settings -->\n", "<!-- /settings -->"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	if !ok {
		t.Fatalf("README.md lacks the line %s", begin)
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		t.Fatalf("README.md lacks the line %s", end)
	}
	want := before + begin + Table() + end + after
	if string(text) == want {
		return
	}
	if !*update {
		t.Fatal("the settings in README.md are not those of the program: run go test ./config -update")
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

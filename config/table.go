package config

import (
	"fmt"
	"strings"
)

// zeroWord returns how "nothing" is written for the setting's kind.
func (s setting) zeroWord() string {
	switch s.kind {
	case "duration", "number", "bytes":
		return "0"
	}
	return `""`
}

// Table returns the settings as a table in Markdown, for the README.
func Table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "A setting `some_key` of the YAML file is also the flag `--some-key` and the variable `%sSOME_KEY`.\n", envPrefix)
	b.WriteString("The file itself is named by `--config` or `" + envPrefix + "CONFIG`.\n")
	fmt.Fprintf(&b, "Members are given as `members:` with one line `name: connection string` each, as `--member name=\"connection string\"`, or as `%sNAME` (the name in lower case, sorted); those of flags replace those of the environment, and those replace the file's.\n", lookup(membersKey).env())
	fmt.Fprintf(&b, "A list is one in the file, a flag for each item, or a variable with `%s` between them; it is replaced as a whole, too.\n", listSeparator)
	b.WriteString("Durations have a unit (`ms`, `s`, `m`, `h`); sizes are bytes or have one (`kB` and `KiB` are both 1024 bytes).\n\n")
	b.WriteString("| Setting | Value | Default | Meaning |\n|---|---|---|---|\n")
	for _, s := range settings {
		def := "`" + s.def + "`"
		if s.def == "" {
			def = "none"
		}
		help := s.help
		if s.zero != "" {
			help += fmt.Sprintf("; `%s`: %s", s.zeroWord(), s.zero)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s.key, s.kind, def, strings.ReplaceAll(help, "|", `\|`))
	}
	return b.String()
}

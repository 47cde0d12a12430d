package hba

import (
	"errors"
	"strings"
)

// token is a word of a line.
type token struct {
	text   string
	quoted bool // then it is a name, and never a keyword
}

// single returns the word of a field that may hold one only; "a,b" of a list,
// which is no keyword, so that it is refused and shown.
func single(field []token) string {
	words := make([]string, len(field))
	for i, t := range field {
		words[i] = t.text
		if t.quoted {
			words[i] = `"` + t.text + `"`
		}
	}
	return strings.Join(words, ",")
}

// split returns the fields of a line, each a list of one word or more. As in
// pg_hba.conf blanks may follow the comma of a list, and within double quotes
// two of them are one.
func split(line string) (fields [][]token, err error) {
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return nil, errors.New("the rule holds a line break or another control character: write each rule by itself")
	}
	rest := strings.TrimLeft(line, " \t")
	for more := false; rest != "" && rest[0] != '#'; rest = strings.TrimLeft(rest, " \t") {
		var t token
		if t, rest, err = next(rest); err != nil {
			return nil, err
		}
		if more {
			fields[len(fields)-1] = append(fields[len(fields)-1], t)
		} else {
			fields = append(fields, []token{t})
		}
		if rest, more = strings.CutPrefix(rest, ","); more {
			if after := strings.TrimLeft(rest, " \t"); after == "" || after[0] == '#' {
				return nil, errListEnds
			}
		}
	}
	return fields, nil
}

var errListEnds = errors.New("a list has a comma without a name beside it: write a,b")

// next cuts a word off.
func next(rest string) (t token, after string, err error) {
	if rest[0] != '"' {
		end := strings.IndexAny(rest, " \t,#\"")
		switch {
		case end < 0:
			end = len(rest)
		case end == 0:
			return t, "", errListEnds
		case rest[end] == '"':
			return t, "", errors.New(`a double quote stands within a name: put the whole name into double quotes, such as "my database"`)
		}
		return token{text: rest[:end]}, rest[end:], nil
	}
	var b strings.Builder
	for rest = rest[1:]; ; {
		part, tail, closed := strings.Cut(rest, `"`)
		if !closed {
			return t, "", errors.New("a double quote is not closed: write one at the end of the name")
		}
		b.WriteString(part)
		if rest, closed = strings.CutPrefix(tail, `"`); !closed {
			break
		}
		b.WriteByte('"')
	}
	if rest != "" && !strings.ContainsAny(rest[:1], " \t,#") {
		return t, "", errors.New("a name goes on after its closing double quote: write a blank or a comma between")
	}
	return token{b.String(), true}, rest, nil
}

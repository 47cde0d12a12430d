package proxy

import "bytes"

// class is what a statement can do to the transaction that it runs in. Of what
// is not known for sure, the class that promises least is taken.
type class uint8

const (
	// classPlain reads or writes, and takes effect only when its transaction
	// commits.
	classPlain class = iota
	// classInert has no effect beyond the session.
	classInert
	// classBegin opens a transaction block.
	classBegin
	// classRollback ends one without effect.
	classRollback
	// classEnd may commit the transaction block.
	classEnd
	// classCopyIn is COPY FROM STDIN: without its data it has no effect.
	classCopyIn
	// classCopyOut is COPY of a table TO STDOUT.
	classCopyOut
	// classOwn may commit by itself outside a transaction block, and cannot end
	// one: VACUUM, CALL, CREATE DATABASE and all that is not known to be plain.
	classOwn
)

// classes are the statements that are known by their first word.
var classes = map[string]class{
	"SELECT": classPlain, "INSERT": classPlain, "UPDATE": classPlain, "DELETE": classPlain, "MERGE": classPlain,
	"VALUES": classPlain, "WITH": classPlain, "TABLE": classPlain, "EXPLAIN": classPlain, "FETCH": classPlain,
	"MOVE": classPlain, "DECLARE": classPlain, "LOCK": classPlain,
	"SHOW": classInert, "SET": classInert, "RESET": classInert, "DEALLOCATE": classInert, "DISCARD": classInert,
	"CLOSE": classInert, "SAVEPOINT": classInert, "RELEASE": classInert, "LISTEN": classInert, "UNLISTEN": classInert,
	"BEGIN": classBegin, "START": classBegin,
	"ABORT": classRollback,
	"END":   classEnd,
}

// classify returns the class of one statement. EXECUTE runs what was prepared
// with PREPARE, which takes plain statements only; EXPLAIN ANALYZE may run that.
func classify(text []byte) class {
	var space keyword
	first, rest := word(text, &space)
	switch string(first) {
	case "":
		if len(rest) == 0 {
			return classInert // empty, or a comment
		}
		return classOwn
	case "COMMIT", "PREPARE", "ROLLBACK":
		return classifyEnd(string(first), rest)
	case "EXECUTE":
		return classPlain
	case "COPY":
		return classifyCopy(rest)
	}
	if c, ok := classes[string(first)]; ok {
		return c
	}
	return classOwn
}

// classifyEnd tells COMMIT from COMMIT PREPARED, which ends no transaction block
// and cannot run in one, and likewise the others.
func classifyEnd(first string, rest []byte) class {
	var space keyword
	second, _ := word(rest, &space)
	switch {
	case string(second) == "PREPARED":
		return classOwn
	case first == "COMMIT", first == "PREPARE" && string(second) == "TRANSACTION":
		return classEnd
	case first == "PREPARE":
		return classInert
	}
	return classRollback
}

// classifyCopy looks for the forms whose effect is known: COPY table FROM STDIN
// and COPY table TO STDOUT. Of COPY (query) the query may write.
func classifyCopy(rest []byte) class {
	rest = skipSpace(rest)
	if len(rest) == 0 || rest[0] == '(' {
		return classOwn
	}
	var space, space2 keyword
	for {
		w, next := word(rest, &space)
		peer, _ := word(next, &space2)
		from, to := string(w) == "FROM", string(w) == "TO"
		switch {
		case from && string(peer) == "STDIN":
			return classCopyIn
		case to && string(peer) == "STDOUT":
			return classCopyOut
		case from || to || len(w) == 0 && len(next) == 0:
			return classOwn
		case len(w) == 0 && next[0] == '"':
			end := bytes.IndexByte(next[1:], '"')
			if end < 0 {
				return classOwn
			}
			next = next[end+2:]
		case len(w) == 0:
			next = next[1:]
		}
		rest = next
	}
}

// keyword has room for the longest word that means something here.
type keyword [16]byte

// word returns the first word of text in capitals, empty if something else comes
// first, and what follows it. Comments and space before it are skipped. A longer
// word is cut. The result is in space: classifying allocates nothing.
func word(text []byte, space *keyword) (w, rest []byte) {
	text = skipSpace(text)
	n := 0
	for n < len(text) && isLetter(text[n]) {
		n++
	}
	k := copy(space[:], text[:n])
	for i := range space[:k] {
		space[i] &^= 0x20 // what is no letter becomes something that is in no keyword
	}
	return space[:k], text[n:]
}

func isLetter(b byte) bool {
	return b|0x20 >= 'a' && b|0x20 <= 'z' || b == '_' || b >= '0' && b <= '9' || b >= 0x80
}

// skipSpace skips white space and comments, as PostgreSQL's src/backend/parser/scan.l
// defines them. A comment without an end is everything.
func skipSpace(text []byte) []byte {
	for {
		text = bytes.TrimLeft(text, " \t\n\r\f\v")
		switch {
		case bytes.HasPrefix(text, []byte("--")):
			end := bytes.IndexAny(text, "\n\r")
			if end < 0 {
				return nil
			}
			text = text[end:]
		case bytes.HasPrefix(text, []byte("/*")):
			end := commentEnd(text)
			if end < 0 {
				return nil
			}
			text = text[end:]
		default:
			return text
		}
	}
}

// commentEnd returns the length of the comment that text begins with, -1 if it
// does not end. Comments nest.
func commentEnd(text []byte) int {
	for i, depth := 0, 0; i+1 < len(text); i++ {
		switch {
		case text[i] == '/' && text[i+1] == '*':
			depth++
			i++
		case text[i] == '*' && text[i+1] == '/':
			depth--
			i++
			if depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// statements calls each with the class of every statement of a simple query, in
// order. It may divide more often than PostgreSQL does (within the body of a
// rule), never less: where quotes leave a doubt, it says classEnd and stops.
func statements(text []byte, each func(class)) {
	for {
		end, sure := statementEnd(text)
		if !sure {
			each(classEnd)
			return
		}
		each(classify(text[:end]))
		if end == len(text) || len(skipSpace(text[end+1:])) == 0 {
			return
		}
		text = text[end+1:]
	}
}

// statementEnd returns where the first statement's semicolon is, or the length
// of text. sure is false where a quote may end elsewhere than it seems: after a
// backslash that depends on standard_conforming_strings, and on the letter before
// the quote.
func statementEnd(text []byte) (end int, sure bool) {
	if bytes.IndexByte(text, ';') < 0 {
		return len(text), true
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case ';':
			return i, true
		case '\'', '"':
			n := bytes.IndexByte(text[i+1:], c)
			if n < 0 || bytes.IndexByte(text[i+1:i+1+n], '\\') >= 0 {
				return 0, false
			}
			i += 1 + n
		case '$':
			n, ok := dollarQuote(text[i:])
			if !ok || n > 0 && i > 0 && isLetter(text[i-1]) { // a name may have a $ in it
				return 0, false
			}
			i += n
		case '-', '/':
			if n := len(text[i:]) - len(skipSpace(text[i:])); n > 0 {
				i += n - 1
			}
		}
	}
	return len(text), true
}

// dollarQuote returns how many bytes of text follow the dollar that it begins
// with, if that opens a string such as $tag$...$tag$; 0 if it does not.
func dollarQuote(text []byte) (n int, ok bool) {
	end := 1
	for end < len(text) && isLetter(text[end]) {
		end++
	}
	if end == len(text) || text[end] != '$' || text[1] >= '0' && text[1] <= '9' {
		return 0, true
	}
	tag := text[:end+1]
	last := bytes.Index(text[end+1:], tag)
	if last < 0 {
		return 0, false
	}
	return end + last + len(tag), true
}

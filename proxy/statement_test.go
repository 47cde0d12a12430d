package proxy

import (
	"slices"
	"strings"
	"testing"
)

func TestWhatAStatementCanDo(t *testing.T) {
	for text, want := range map[string]class{
		"": classInert, "-- nothing": classInert, "/* a /* b */ c */": classInert, "/* no end": classInert,
		"select 1": classPlain, "  /* hint */ -- x\n\tINSERT into t values (1)": classPlain, "with x as (delete from t returning *) table x": classPlain,
		"(select 1)": classOwn, "select\"x\" from t": classPlain,
		"begin": classBegin, "BEGIN ISOLATION LEVEL SERIALIZABLE": classBegin, "start transaction": classBegin, "START_REPLICATION 0/0": classOwn,
		"commit": classEnd, "COMMIT AND CHAIN": classEnd, "end": classEnd, "End Work": classEnd, "commit prepared 'x'": classOwn,
		"rollback": classRollback, "abort": classRollback, "ROLLBACK TO SAVEPOINT a": classRollback, "rollback /* x */ prepared 'x'": classOwn,
		"prepare transaction 'x'": classEnd, "prepare p as select 1": classInert, "prepare/**/transaction 'x'": classEnd, "execute p(1)": classPlain,
		"vacuum": classOwn, "call p()": classOwn, "do $$ begin commit; end $$": classOwn, "create database x": classOwn, "créer": classOwn,
		"copy t from stdin": classCopyIn, "COPY s.t (a, b) FROM STDIN WITH (FORMAT csv)": classCopyIn, `copy "from stdin" to stdout`: classCopyOut,
		"copy t to stdout": classCopyOut, "copy (delete from t returning *) to stdout": classOwn, "copy t from '/tmp/x'": classOwn,
		"copy t from program 'x'": classOwn, "copy": classOwn, "copy t from": classOwn, `copy "to stdout" from '/x'`: classOwn, "copy t from program 'to stdout'": classOwn,
		"set x = 1": classInert, "show all": classInert, "selection": classOwn, "commits": classOwn, "\u00a0commit": classOwn,
	} {
		if got := classify([]byte(text)); got != want {
			t.Errorf("%q is of class %d, want %d", text, got, want)
		}
	}
}

func TestATextIsDividedAtEverySemicolonThatCounts(t *testing.T) {
	for text, want := range map[string][]class{
		"select 1":                        {classPlain},
		"select 1;":                       {classPlain},
		"select 1; -- done":               {classPlain},
		"begin; insert into t; commit":    {classBegin, classPlain, classEnd},
		"insert into t values ('a;b')":    {classPlain},
		"select 'it''s; fine'; commit":    {classPlain, classEnd},
		`select "a;b"; commit`:            {classPlain, classEnd},
		"select $$a;b$$; commit":          {classPlain, classEnd},
		"select $x$a;$$;b$x$; commit":     {classPlain, classEnd},
		"select $1; commit":               {classPlain, classEnd},
		"select $1$2; commit":             {classPlain, classEnd},
		"select 1 -- ; commit\n":          {classPlain},
		"select 1 /* ; commit */ ; abort": {classPlain, classRollback},
		"select 2*/* ; */3; commit":       {classPlain, classEnd},
		"select 1 - 2 / 3; commit":        {classPlain, classEnd},
		";;commit":                        {classInert, classInert, classEnd},
		// In doubt: each of these hides a COMMIT from a careless reader.
		`select E'\'; commit; --'`:            {classEnd},
		`select '\'; commit; select '`:        {classEnd},
		"select a$b$; commit; select x$b$":    {classEnd},
		"select 'no end; commit":              {classEnd},
		"select $$no end; commit":             {classEnd},
		"create rule r do (insert a; commit)": {classOwn, classEnd},
	} {
		var got []class
		statements([]byte(text), func(c class) { got = append(got, c) })
		if !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// FuzzStatements looks that no text is taken for harmless that has a COMMIT
// behind a semicolon, whatever stands before.
func FuzzStatements(f *testing.F) {
	for _, seed := range []string{"select 1", "select 'x", "select $a$", "/* ", "-- ", `e'\'`, "a$b$", "\"", "$1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got []class
		statements([]byte(text), func(c class) { got = append(got, c) })
		if len(got) == 0 {
			t.Fatal("a text without a statement")
		}
		if strings.ContainsAny(text, `'"$-/*\`) {
			return
		}
		got = got[:0]
		statements([]byte(text+"; commit"), func(c class) { got = append(got, c) })
		if got[len(got)-1] != classEnd {
			t.Errorf("%v", got)
		}
	})
}

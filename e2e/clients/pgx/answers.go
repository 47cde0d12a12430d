package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
)

// controller tells the server what to do to its clients.
type controller struct {
	net.Conn
	lines *bufio.Reader
}

func (c controller) say(line string) string {
	fmt.Fprintln(c, line)
	answer, _ := c.lines.ReadString('\n')
	return answer[:max(0, len(answer)-1)]
}

// session is a way to run statements in a transaction of a kept connection.
type session func(ctx context.Context, work func(execute func(string) error) error) error

// tryAnswers prints what pgxpool and database/sql make of each answer:
// CLIENT|ANSWER|what was raised|its SQLSTATE|what the next use makes of it|statements.
func tryAnswers(ctx context.Context, port, control string) error {
	conn, err := net.Dial("tcp", "127.0.0.1:"+control)
	if err != nil {
		return err
	}
	defer conn.Close()
	url := "postgres://postgres@127.0.0.1:" + port + "/postgres?sslmode=disable"
	connect := func() error {
		c, err := pgx.Connect(ctx, url)
		if err == nil {
			c.Close(ctx)
		}
		return err
	}
	pool, err := pgxpool.New(ctx, url+"&pool_max_conns=1")
	if err != nil {
		return err
	}
	defer pool.Close()
	db, err := sql.Open("pgx", url)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	inPool := func(ctx context.Context, work func(func(string) error) error) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			return work(func(text string) error { _, err := tx.Exec(ctx, text); return err })
		})
	}
	inSQL := func(ctx context.Context, work func(func(string) error) error) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := work(func(text string) error { _, err := tx.ExecContext(ctx, text); return err }); err != nil {
			return err
		}
		return tx.Commit()
	}
	c := controller{conn, bufio.NewReader(conn)}
	return errors.Join(tryClient(ctx, c, "pgxpool", inPool, connect), tryClient(ctx, c, "database/sql with pgx", inSQL, connect))
}

func tryClient(ctx context.Context, c controller, client string, in session, connect func() error) error {
	ask := func() error { return in(ctx, func(execute func(string) error) error { return execute("SELECT 1") }) }
	struck := func() error {
		return in(ctx, func(execute func(string) error) error { return execute("SELECT 'strike'") })
	}
	answers := []struct {
		name      string
		run, next func() error
	}{
		{"idle", func() error { ask(); c.say("strike idle"); return ask() }, ask},
		{"waiting", func() error {
			return in(ctx, func(execute func(string) error) error {
				err := execute("SELECT 1")
				c.say("strike waiting")
				return errors.Join(err, execute("SELECT 'strike'"))
			})
		}, ask},
		{"statement", struck, ask},
		{"commit", struck, ask},
		{"close", struck, ask},
		{"connect", connect, connect},
	}
	for _, a := range answers {
		if err := ask(); err != nil {
			return fmt.Errorf("%s, before %s: %w", client, a.name, err)
		}
		c.say("arm " + a.name)
		raised, code := outcome(a.run())
		heard := c.say("heard")
		next, _ := outcome(a.next())
		fmt.Printf("%s|%s|%s|%s|%s|%s\n", client, a.name, raised, code, next, heard)
	}
	return nil
}

func outcome(err error) (raised, code string) {
	var refused *pgconn.PgError
	switch {
	case err == nil:
		return "works", ""
	case errors.As(err, &refused):
		return "PgError", refused.Code
	}
	return "error", ""
}

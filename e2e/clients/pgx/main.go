// Command pgx tries pgx and its pool on the server that libpq's environment names
// (PGHOST, PGUSER and so on). It prints "ok NAME" or "FAILED NAME: why" for each
// check. With the ports of a server that strikes and of who controls it, it prints
// what becomes of pgx at each answer instead.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

var checks = []struct {
	name string
	run  func(ctx context.Context, c *pgx.Conn) error
}{
	{"connect", func(ctx context.Context, c *pgx.Conn) error { return is(ctx, c, 1, "SELECT 1") }},
	{"a failed statement leaves the session whole", failedStatement},
	{"every mode of queries", modes},
	{"batch", batch},
	{"pipeline", pipeline},
	{"COPY in and out", copyBothWays},
	{"notify", notify},
	{"cancel", cancel},
	{"100 MB result", largeResult},
	{"10 MB parameter and value", largeParameter},
	{"pool", pool},
}

func main() {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if len(os.Args) == 3 {
		if err := tryAnswers(ctx, os.Args[1], os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	code := 0
	for _, check := range checks {
		err := func() error {
			c, err := pgx.Connect(ctx, "")
			if err != nil {
				return err
			}
			defer c.Close(ctx)
			return check.run(ctx, c)
		}()
		if err != nil {
			code = 1
			fmt.Printf("FAILED %s: %s\n", check.name, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		fmt.Println("ok", check.name)
	}
	os.Exit(code)
}

// asker is a connection or a pool.
type asker interface {
	QueryRow(ctx context.Context, query string, args ...any) pgx.Row
}

// is returns an error if a query's value is not the one that is wanted.
func is[T comparable](ctx context.Context, c asker, want T, query string, args ...any) error {
	var got T
	if err := c.QueryRow(ctx, query, args...).Scan(&got); err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s: got %v, want %v", query, got, want)
	}
	return nil
}

// refused returns an error if err has another SQLSTATE.
func refused(err error, code string) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == code {
		return nil
	}
	return fmt.Errorf("got %v, want SQLSTATE %s", err, code)
}

func failedStatement(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, "SELECT 1/0")
	return errors.Join(refused(err, "22012"), is(ctx, c, 2, "SELECT 2"))
}

func modes(ctx context.Context, c *pgx.Conn) error {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		for i := range 100 {
			if err := is(ctx, c, 2*i, "SELECT $1::int * 2", mode, i); err != nil {
				return fmt.Errorf("%v: %w", mode, err)
			}
		}
	}
	return nil
}

func batch(ctx context.Context, c *pgx.Conn) error {
	var b pgx.Batch
	sum := 0
	for i := range 2000 {
		b.Queue("SELECT $1::int", i).QueryRow(func(row pgx.Row) error {
			var n int
			defer func() { sum += n }()
			return row.Scan(&n)
		})
	}
	if err := c.SendBatch(ctx, &b).Close(); err != nil {
		return err
	}
	if want := 2000 * 1999 / 2; sum != want {
		return fmt.Errorf("sum is %d, want %d", sum, want)
	}
	return nil
}

// pipeline sends three groups, of which the second fails.
func pipeline(ctx context.Context, c *pgx.Conn) error {
	p := c.PgConn().StartPipeline(ctx)
	for _, text := range []string{"SELECT 1", "SELECT 1/0", "SELECT 3"} {
		p.SendQueryParams(text, nil, nil, nil, nil)
		if err := p.Sync(); err != nil {
			return err
		}
	}
	var values []string
	for syncs := 0; syncs < 3; {
		results, err := p.GetResults()
		switch r := results.(type) {
		case *pgconn.PipelineSync:
			syncs++
		case *pgconn.ResultReader:
			if rows := r.Read(); rows.Err != nil {
				err = rows.Err
			} else {
				values = append(values, string(rows.Rows[0][0]))
			}
		}
		if err != nil {
			if err := refused(err, "22012"); err != nil {
				return err
			}
			values = append(values, "failed")
		}
	}
	if got := strings.Join(values, " "); got != "1 failed 3" {
		return fmt.Errorf("got %q", got)
	}
	return p.Close()
}

func copyBothWays(ctx context.Context, c *pgx.Conn) error {
	if _, err := c.Exec(ctx, "CREATE TEMP TABLE t (n int, s text)"); err != nil {
		return err
	}
	i := 0
	rows := pgx.CopyFromFunc(func() ([]any, error) {
		if i++; i > 100_000 {
			return nil, nil
		}
		return []any{i, "x"}, nil
	})
	if _, err := c.CopyFrom(ctx, pgx.Identifier{"t"}, []string{"n", "s"}, rows); err != nil {
		return err
	}
	var out bytes.Buffer
	if _, err := c.PgConn().CopyTo(ctx, &out, "COPY t TO STDOUT"); err != nil {
		return err
	}
	if n := bytes.Count(out.Bytes(), []byte("\tx\n")); n != 100_000 {
		return fmt.Errorf("%d rows came back", n)
	}
	_, err := c.PgConn().CopyFrom(ctx, strings.NewReader("no number\tx\n"), "COPY t FROM STDIN")
	return errors.Join(refused(err, "22P02"), is(ctx, c, 100_000, "SELECT count(*)::int FROM t"))
}

func notify(ctx context.Context, c *pgx.Conn) error {
	if _, err := c.Exec(ctx, "LISTEN news"); err != nil {
		return err
	}
	other, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer other.Close(ctx)
	if _, err := other.Exec(ctx, "NOTIFY news, 'hello'"); err != nil {
		return err
	}
	n, err := c.WaitForNotification(ctx)
	if err == nil && n.Payload != "hello" {
		err = fmt.Errorf("got %q", n.Payload)
	}
	return err
}

func cancel(ctx context.Context, c *pgx.Conn) error {
	other, err := pgx.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer other.Close(ctx)
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(ctx, "SELECT pg_sleep(60)")
		done <- err
	}()
	for asleep := false; !asleep; {
		err := other.QueryRow(ctx, "SELECT wait_event IS NOT DISTINCT FROM 'PgSleep' FROM pg_stat_activity WHERE pid = $1", c.PgConn().PID()).Scan(&asleep)
		if err != nil {
			return err
		}
	}
	if err := c.PgConn().CancelRequest(ctx); err != nil {
		return err
	}
	return errors.Join(refused(<-done, "57014"), is(ctx, c, 1, "SELECT 1"))
}

func largeResult(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, "SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
	if err != nil {
		return err
	}
	defer rows.Close()
	sum := 0
	for rows.Next() {
		sum += len(rows.RawValues()[0])
	}
	if sum != 100_000_000 {
		return fmt.Errorf("%d bytes: %w", sum, rows.Err())
	}
	return rows.Err()
}

func largeParameter(ctx context.Context, c *pgx.Conn) error {
	data := bytes.Repeat([]byte("0123456789"), 1_000_000)
	var back []byte
	if err := c.QueryRow(ctx, "SELECT $1::bytea", data).Scan(&back); err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%d other bytes came back", len(back))
	}
	return nil
}

func pool(ctx context.Context, _ *pgx.Conn) error {
	p, err := pgxpool.New(ctx, "pool_max_conns=4")
	if err != nil {
		return err
	}
	defer p.Close()
	var all errgroup.Group
	all.SetLimit(8)
	for i := range 400 {
		all.Go(func() error { return is(ctx, p, i, "SELECT $1::int", i) })
	}
	return all.Wait()
}

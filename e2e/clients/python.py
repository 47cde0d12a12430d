"""Tries psycopg 3 and its pool on the server that libpq's environment names
(PGHOST, PGUSER and so on). Prints "ok NAME" or "FAILED NAME: why" for each check."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
from psycopg_pool import ConnectionPool

CHECKS = []


def check(name):
    return lambda function: CHECKS.append((name, function))


@contextmanager
def session(**options):
    with psycopg.connect("", autocommit=True, **options) as conn:
        yield conn


def one(conn, query, *args, **options):
    return conn.execute(query, args or None, **options).fetchone()[0]


def wait(what, condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"not within 20 s: {what}"


def fails(error, function, *args):
    try:
        function(*args)
    except error as e:
        return e
    raise AssertionError(f"no {error.__name__}")


@check("connect")
def _():
    with session(application_name="näme") as conn:
        assert one(conn, "SELECT 1") == 1
        assert one(conn, "SHOW application_name") == conn.info.parameter_status("application_name")


@check("a failed statement leaves the session whole")
def _():
    with session() as conn:
        fails(psycopg.errors.DivisionByZero, conn.execute, "SELECT 1/0")
        assert one(conn, "SELECT 2") == 2


@check("transactions and savepoints")
def _():
    with session() as conn:
        conn.execute("CREATE TEMP TABLE t (n int)")
        with conn.transaction():
            conn.execute("INSERT INTO t VALUES (1)")
            with conn.transaction(force_rollback=True):
                conn.execute("INSERT INTO t VALUES (2)")
        assert one(conn, "SELECT sum(n) FROM t") == 1


@check("prepared statements")
def _():
    with session() as conn:
        for i in range(200):  # two texts in turn, prepared by name
            assert one(conn, f"SELECT %s::int + {i % 2}", i, prepare=True) == i + i % 2
        assert one(conn, "SELECT count(*) FROM pg_prepared_statements") == 2


@check("pipeline")
def _():
    with session() as conn:
        with conn.pipeline():
            cursors = [conn.execute("SELECT %s::int", (i,)) for i in range(2000)]
        assert [c.fetchone()[0] for c in cursors] == list(range(2000))


@check("an error in a pipeline")
def _():
    with session() as conn:

        def run():
            with conn.pipeline() as p:
                conn.execute("SELECT 1")
                conn.execute("SELECT 1/0")
                conn.execute("SELECT 3")
                p.sync()

        fails(psycopg.errors.DivisionByZero, run)
        assert one(conn, "SELECT 4") == 4


@check("COPY in and out")
def _():
    rows = [(i, "x" * 100) for i in range(50_000)]
    with session() as conn:
        conn.execute("CREATE TEMP TABLE t (n int, s text)")
        for form in "text", "binary":
            conn.execute("TRUNCATE t")
            with conn.cursor().copy(f"COPY t FROM STDIN (FORMAT {form})") as copy:
                copy.set_types(["int4", "text"])
                for row in rows:
                    copy.write_row(row)
            with conn.cursor().copy(f"COPY t TO STDOUT (FORMAT {form})") as copy:
                copy.set_types(["int4", "text"])
                assert list(copy.rows()) == rows


@check("COPY given up by the client")
def _():
    with session() as conn:
        conn.execute("CREATE TEMP TABLE t (n int)")

        def run():
            with conn.cursor().copy("COPY t FROM STDIN") as copy:
                copy.write("1\n")
                raise KeyError

        fails(psycopg.errors.QueryCanceled, run)
        assert one(conn, "SELECT count(*) FROM t") == 0


@check("notify")
def _():
    with session() as listener, session() as other:
        listener.execute("LISTEN news")
        other.execute("SELECT pg_notify('news', 'hello')")
        n = next(listener.notifies())
        assert (n.channel, n.payload, n.pid) == ("news", "hello", other.info.backend_pid)


@check("cancel")
def _():
    with session() as conn, session() as other:
        asleep = "SELECT wait_event IS NOT DISTINCT FROM 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
        with ThreadPoolExecutor() as threads:
            running = threads.submit(conn.execute, "SELECT pg_sleep(60)")
            wait("the query runs", lambda: one(other, asleep, conn.info.backend_pid))
            conn.cancel()
            fails(psycopg.errors.QueryCanceled, running.result)
        assert one(conn, "SELECT 1") == 1


@check("100 MB result, at once and by a cursor")
def _():
    query = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
    with session() as conn:
        assert sum(len(r[0]) for r in conn.execute(query)) == 100_000_000
        with conn.transaction(), conn.cursor("large") as cursor:
            cursor.itersize = 1000
            assert sum(len(r[0]) for r in cursor.execute(query)) == 100_000_000


@check("10 MB parameter and value")
def _():
    with session() as conn:
        data = bytes(range(256)) * 40_000
        assert one(conn, "SELECT %b::bytea", data) == data


@check("pool")
def _():
    with ConnectionPool("", min_size=2, max_size=4, timeout=20) as pool:


        def ask(i):
            with pool.connection() as conn:
                return one(conn, "SELECT %s::int", i)

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(ask, range(400))) == list(range(400))


failed = False
for name, function in CHECKS:
    try:
        function()
        print("ok", name)
    except Exception as e:
        failed = True
        print(f"FAILED {name}: {type(e).__name__}: {e}".replace("\n", "; ")[:500])
sys.exit(failed)

"""Prints what psycopg2, psycopg 3 and its pool, SQLAlchemy and Django make of each
answer: CLIENT|ANSWER|what was raised|its SQLSTATE|what the next use makes of it|statements.
Arguments: the ports of the server and of who controls it."""

import socket
import sys

PORT, CONTROL = map(int, sys.argv[1:])
DSN = f"host=127.0.0.1 port={PORT} user=postgres dbname=postgres sslmode=disable gssencmode=disable"
controller = socket.create_connection(("127.0.0.1", CONTROL)).makefile("rw")


def control(line):
    print(line, file=controller, flush=True)
    return controller.readline().strip()


def innermost(e):
    """The driver's error within an ORM's."""
    return getattr(e, "orig", None) or (e.__cause__ if "django" in type(e).__module__ else None) or e


def outcome(function):
    try:
        function()
        return "works", ""
    except Exception as e:
        inner = innermost(e)
        code = getattr(inner, "pgcode", None) or getattr(inner, "sqlstate", None) or ""
        return type(e).__name__, code


def report(client, answer, function, again):
    raised, code = outcome(function)
    heard = control("heard")
    print(client, answer, raised, code, outcome(again)[0], heard, sep="|", flush=True)


def try_client(client, session, connect):
    """session(work) runs work(execute) in a transaction of a session that the
    client keeps; connect() makes a new one."""
    ask = lambda: session(lambda execute: execute("SELECT 1"))

    def waiting():
        def work(execute):
            execute("SELECT 1")
            control("strike waiting")
            execute("SELECT 'strike'")
        session(work)

    def idle():
        ask()
        control("strike idle")
        ask()

    struck = lambda: session(lambda execute: execute("SELECT 'strike'"))
    for answer, function in [("idle", idle), ("waiting", waiting), ("statement", struck), ("commit", struck), ("close", struck)]:
        ask()
        control(f"arm {answer}")
        report(client, answer, function, ask)
    control("arm connect")
    report(client, "connect", connect, connect)


def try_psycopg2():
    import psycopg2
    from psycopg2.pool import SimpleConnectionPool
    pool = SimpleConnectionPool(1, 1, DSN)

    def session(work):
        conn = pool.getconn()
        try:
            with conn, conn.cursor() as cursor:
                work(cursor.execute)
        finally:
            pool.putconn(conn)

    try_client("psycopg2 pool", session, lambda: psycopg2.connect(DSN))


def try_psycopg3():
    import logging
    import psycopg
    from psycopg_pool import ConnectionPool
    logging.disable()
    with ConnectionPool(DSN, min_size=1, max_size=1, timeout=10) as pool:

        def session(work):
            with pool.connection() as conn:
                work(conn.execute)

        try_client("psycopg_pool", session, lambda: psycopg.connect(DSN))


def try_sqlalchemy(pre_ping):
    import sqlalchemy
    url = f"postgresql+psycopg2://postgres@127.0.0.1:{PORT}/postgres?sslmode=disable"
    engine = sqlalchemy.create_engine(url, pool_size=1, pool_pre_ping=pre_ping)

    def session(work):
        with engine.begin() as conn:
            work(lambda text: conn.execute(sqlalchemy.text(text)))

    def connect():
        with sqlalchemy.create_engine(url).connect():
            pass

    try_client("SQLAlchemy" + (", pool_pre_ping" if pre_ping else ""), session, connect)


def try_django():
    import django
    from django.conf import settings
    settings.configure(DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": PORT, "USER": "postgres",
        "NAME": "postgres", "CONN_MAX_AGE": None, "OPTIONS": {"sslmode": "disable"}}})
    django.setup()
    from django.db import close_old_connections, connection, transaction

    def session(work):  # a request
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                work(cursor.execute)
        finally:
            close_old_connections()

    def connect():
        connection.close()
        connection.ensure_connection()

    try_client("Django", session, connect)


try_psycopg2()
try_psycopg3()
try_sqlalchemy(pre_ping=False)
try_sqlalchemy(pre_ping=True)
try_django()

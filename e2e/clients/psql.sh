#!/bin/bash
# Tries PostgreSQL's own programs on the server that libpq's environment names
# (PGHOST, PGUSER and so on). Prints "ok NAME" or "FAILED NAME: why" for each check.
# TLS=1 says that the server has it, BINDING=1 that a login can be bound to it, and
# REPLICATOR_PASSWORD is the password of the role replicator.
set -uo pipefail

failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# check runs a function, each line of which must succeed.
check() {
  local out
  out=$(set -e; "${@:2}" 2>&1)
  if [ $? = 0 ]; then
    echo "ok $1"
  else
    out=$(tail -n 8 <<<"$out")
    echo "FAILED $1: ${out//$'\n'/; }"
    failed=1
  fi
}

sql() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }
is() { [ "$1" = "$2" ] || { echo "got ${1:0:200}, want $2"; return 1; }; }
refused() { # WHY COMMAND...: it fails, and says so
  local out
  ! out=$("${@:2}" 2>&1) || { echo "not refused: $*"; return 1; }
  grep -q "$1" <<<"$out" || { echo "refused, but not because: $1; it says: $out"; return 1; }
}

protocol() {
  is "$(PGMINPROTOCOLVERSION=$1 PGMAXPROTOCOLVERSION=$1 sql -c 'SELECT 1' -c '\conninfo' | grep -E '^1$|^Protocol Version')" "1
Protocol Version|$1"
}

encryption() {
  if [ -n "${TLS:-}" ]; then
    is "$(sql -c '\conninfo' | grep '^SSL Connection')" "SSL Connection|true"
    PGSSLMODE=verify-full sql -c 'SELECT 1'
    PGSSLMODE=require PGSSLNEGOTIATION=direct sql -c 'SELECT 1'
    PGSSLROOTCERT=system PGSSLMODE=verify-full refused 'certificate verify failed' sql -c 'SELECT 1'
  else
    PGSSLMODE=prefer sql -c 'SELECT 1'
    PGSSLMODE=require refused 'server does not support SSL' sql -c 'SELECT 1'
  fi
  PGGSSENCMODE=prefer sql -c 'SELECT 1'
}

binding() {
  if [ -n "${BINDING:-}" ]; then
    PGCHANNELBINDING=require sql -c 'SELECT 1'
    PGCHANNELBINDING=require PGSSLNEGOTIATION=direct PGSSLMODE=require sql -c 'SELECT 1'
  else
    PGCHANNELBINDING=require refused 'channel binding' sql -c 'SELECT 1'
  fi
  PGCHANNELBINDING=disable sql -c 'SELECT 1'
}

wrong_password() { PGPASSWORD=wrong refused 'password authentication failed' sql -c 'SELECT 1'; }

# Ctrl-C, as soon as the server is at work on the query.
cancel() {
  export PGMAXPROTOCOLVERSION=$1
  PGAPPNAME=cancelled sql -c 'SELECT pg_sleep(60)' >"$work/cancelled" 2>&1 &
  local pid=$! seen=0
  for _ in $(seq 200); do
    seen=$(sql -c "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cancelled' AND wait_event = 'PgSleep'")
    [ "$seen" = 1 ] && break
  done
  is "$seen" 1
  kill -INT "$pid"
  wait "$pid" && return 1
  # psql says that it has sent the request, before or after.
  is "$(grep -v 'Cancel request sent' "$work/cancelled")" "ERROR:  canceling statement due to user request"
}

# The second group fails in its middle; the third is not disturbed.
pipeline() {
  is "$(psql -XAtq <<'SQL'
\startpipeline
SELECT $1::int \bind 1 \sendpipeline
\syncpipeline
SELECT 1/0 \bind \sendpipeline
SELECT 'skipped' \bind \sendpipeline
\syncpipeline
SELECT $1::int \bind 3 \sendpipeline
\endpipeline
SELECT 4;
SQL
)" "1
3
4"
}

prepared() {
  is "$(sql <<'SQL'
SELECT $1::int * 2 \parse twice
\bind_named twice 21 \g
\bind_named twice 4 \g
\close_prepared twice
SQL
)" "42
8"
}

copy_both_ways() {
  seq 100000 >"$work/in"
  sql -c 'DROP TABLE IF EXISTS copied' -c 'CREATE TABLE copied (n int)' -c "\\copy copied FROM '$work/in'"
  sql -c "\\copy (SELECT n FROM copied ORDER BY n) TO '$work/out'"
  cmp "$work/in" "$work/out"
  refused 'invalid input syntax' sql -c '\copy copied FROM stdin' <<<$'1\nno number\n2'
  is "$(sql -c 'SELECT count(*) FROM copied')" 100000
}

notify() { is "$(sql -c 'LISTEN news' -c "NOTIFY news, 'hello'" | cut -d' ' -f1-7)" 'Asynchronous notification "news" with payload "hello" received'; }
watch() { is "$(echo 'SELECT 1 \watch c=3 i=0.05' | sql | grep -c '^1$')" 3; }
large_result() { is "$(sql -c "SELECT repeat('x', 999) FROM generate_series(1, 100000)" | wc -c)" 100000000; }
large_statement() { is "$({ printf "SELECT length('"; head -c 10000000 /dev/zero | tr '\0' x; echo "')"; } | sql -f -)" 10000000; }

# pgbench's own tables must agree afterwards.
bench() {
  pgbench -q -i -s 1
  for mode in simple extended prepared; do
    pgbench -n -M "$mode" -c 4 -j 2 -t 50
  done
  pgbench -n -M extended -c 2 -t 50 -f <(echo '\startpipeline
UPDATE pgbench_accounts SET abalance = abalance WHERE aid = 1;
SELECT 1;
\endpipeline')
  is "$(sql -c 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), count(*) FROM pgbench_history')" "t|600"
}

# In parallel: the workers share a snapshot.
dump() {
  pg_dump -Fd -j 2 -t 'pgbench*' -f "$work/dump"
  sql -c 'DROP DATABASE IF EXISTS restored' -c 'CREATE DATABASE restored'
  pg_restore -j 2 -d restored "$work/dump"
  local balances='SELECT count(*), sum(abalance) FROM pgbench_accounts'
  is "$(sql -d restored -c "$balances")" "$(sql -c "$balances")"
  sql -c 'DROP DATABASE restored'
}

replicator() { env PGUSER=replicator PGPASSWORD="$REPLICATOR_PASSWORD" "$@"; }

basebackup() {
  replicator pg_basebackup -D "$work/backup" -X stream -c fast
  pg_verifybackup -q "$work/backup"
}

receivewal() {
  local to
  to=$(sql -c 'SELECT pg_current_wal_lsn()')
  mkdir "$work/wal"
  replicator timeout 20 pg_receivewal -D "$work/wal" --endpos="$to" --no-loop
  ls "$work"/wal/*
}

check "protocol 3.0" protocol 3.0
check "protocol 3.2" protocol 3.2
check "encryption" encryption
check "channel binding" binding
check "a wrong password" wrong_password
check "Ctrl-C, protocol 3.0" cancel 3.0
check "Ctrl-C, protocol 3.2" cancel 3.2
check "pipeline" pipeline
check "prepared statements" prepared
check "\\copy in and out" copy_both_ways
check "notify" notify
check "\\watch" watch
check "100 MB result" large_result
check "10 MB statement" large_statement
check "pgbench, all query modes" bench
check "pg_dump and pg_restore" dump
check "pg_basebackup" basebackup
check "pg_receivewal" receivewal
exit $failed

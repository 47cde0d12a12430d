#!/bin/bash
# Runs once, when the first primary is made: the roles of the standby and of the
# proxy. Every clone has them too.
set -euo pipefail

psql -v ON_ERROR_STOP=1 -q -U "${POSTGRES_USER:-postgres}" -d postgres <<'SQL'
\getenv replicator_password REPLICATOR_PASSWORD
\getenv proxy_password PROXY_PASSWORD
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replicator_password';
CREATE ROLE pgfailproxy LOGIN PASSWORD :'proxy_password';
GRANT pg_monitor TO pgfailproxy;
GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf(), pg_wal_replay_resume() TO pgfailproxy;
GRANT ALTER SYSTEM ON PARAMETER primary_conninfo TO pgfailproxy;
SQL

echo "host replication replicator samenet scram-sha-256" >>"$PGDATA/pg_hba.conf"

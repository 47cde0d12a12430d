#!/bin/bash
# The entrypoint of a member: the image's own, after cloning the member that
# CLONE_FROM names if there is no data yet.
#
#   member.sh postgres ...   clone if need be, then run the server
#   member.sh clone          replace the data; the server must not run
set -euo pipefail

# clone copies CLONE_FROM into a folder beside PGDATA, and puts it in the place
# of PGDATA when it is whole: a clone that was interrupted changes nothing.
clone() {
  local part=$PGDATA.part
  export PGHOST=$CLONE_FROM PGUSER=replicator PGPASSWORD=$REPLICATOR_PASSWORD PGAPPNAME=$MEMBER PGCONNECT_TIMEOUT=3
  until psql -q -d postgres -v slot="$MEMBER" >/dev/null <<<"
      SELECT pg_create_physical_replication_slot(:'slot')
      WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'slot');" &&
    rm -rf "$part" && pg_basebackup -D "$part" -R -X stream -S "$MEMBER" -c fast; do
    if [ "$SECONDS" -gt 120 ]; then
      echo "member.sh: $CLONE_FROM cannot be cloned, giving up" >&2
      exit 1
    fi
    echo "member.sh: $CLONE_FROM cannot be cloned yet, trying again" >&2
    sleep 0.5
  done
  rm -rf "$PGDATA"
  mv "$part" "$PGDATA"
  echo "member.sh: $MEMBER is a clone of $CLONE_FROM"
}

# prepare makes the folder that PGDATA is in, and clones as the server's user.
prepare() {
  install -d -o postgres -g postgres -m 700 "$(dirname "$PGDATA")"
  gosu postgres "${BASH_SOURCE[0]}" clone
}

if [ "$1" = clone ]; then
  if [ "$(id -u)" = 0 ]; then prepare; else clone; fi
  exit
fi
if [ -n "${CLONE_FROM:-}" ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  prepare
fi
if [ "$1" = postgres ]; then
  set -- "$@" -c "cluster_name=$MEMBER" # so that a client can see where it is
fi
exec docker-entrypoint.sh "$@"

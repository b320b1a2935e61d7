#!/bin/sh
# First start: a cluster with the user, password and database that the environment names. Then: serve it.
set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth=scram-sha-256 --encoding=UTF8 --no-sync
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "create database \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp

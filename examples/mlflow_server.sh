#!/bin/sh
# Serves MLflow with logins over PostgreSQL; artifacts go through the server, so that clients need HTTP only.
#
# From the environment: PGHOST, PGUSER, PGDATABASE and PGPASSWORD (or ~/.pgpass) for the database;
# MLFLOW_AUTH_ADMIN_USERNAME and MLFLOW_AUTH_ADMIN_PASSWORD for the first user; MLFLOW_FLASK_SERVER_SECRET_KEY;
# ALLOWED_HOSTS, the names the server is called by; FOLDER for artifacts. More options are passed on.
#
# The two passwords and the key may also come from files: PGPASSWORD_FILE and so on name them.
set -eu
for name in PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do
    file=$(printenv "${name}_FILE" || true)
    [ -z "$file" ] || export "$name=$(cat "$file")"
done
database=postgresql+psycopg://
mkdir -p "$FOLDER/artifacts" "$FOLDER/tmp"
# Uploads pass through TMPDIR, and a /tmp in memory would have to hold the largest.
FOLDER=$(cd "$FOLDER" && pwd)
export TMPDIR="$FOLDER/tmp"
export MLFLOW_AUTH_CONFIG_PATH="${MLFLOW_AUTH_CONFIG_PATH:-$(cd "$(dirname "$0")" && pwd)/mlflow_auth.ini}"
# Python imports from the folder that it stands in before all others; nobody but root writes into this one.
export PYTHONSAFEPATH=1
cd /
# MLflow's own background jobs take minutes to start and memory, and nothing here uses them.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_DISABLE_TELEMETRY=true
# Once, before there are several workers to do it at the same time.
mlflow db upgrade "$database"
exec mlflow server --backend-store-uri "$database" --artifacts-destination "$FOLDER/artifacts" \
    --host 0.0.0.0 --port "${PORT:-5000}" --workers 2 --allowed-hosts "$ALLOWED_HOSTS" --app-name basic-auth "$@"

#!/bin/bash
# Runs once, on an empty data folder: MLflow gets a role that owns its two databases and nothing else.
set -e
psql -v ON_ERROR_STOP=1 --username postgres --set=password="$MLFLOW_PASSWORD" <<'SQL'
CREATE ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
SQL

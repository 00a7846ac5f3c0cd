#!/bin/sh
# Runs a command with secrets that lie in files: NAME_FILE=/path becomes NAME=<what is in it>.
set -eu
for name in PGPASSWORD TOOLKIT_DSN TOOLKIT_CACHE_REDIS; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        value=$(cat "$file")
        export "$name=$value"
        unset "${name}_FILE"
    fi
done
exec "$@"

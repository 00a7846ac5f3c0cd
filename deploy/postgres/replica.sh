#!/bin/sh
# Copies the primary the first time, then runs the server that is asked for as its replica.
#
# PGDATA                     where the copy goes
# REPLICA                    its name, and that of the slot it reads from
# PRIMARY                    the primary's conninfo, without the password
# REPLICATION_PASSWORD_FILE  where that is
set -eu
umask 077

# a file, as libpq wants it: a password in the conninfo would show in the server's settings
passfile=$(dirname -- "$PGDATA")/replication.pgpass
mkdir -p -- "$(dirname -- "$PGDATA")"
printf '*:*:*:*:%s\n' "$(cat -- "$REPLICATION_PASSWORD_FILE")" >"$passfile"
primary="$PRIMARY application_name=$REPLICA passfile='$passfile' connect_timeout=3"

if [ ! -e "$PGDATA/PG_VERSION" ]; then
    # beside, and then renamed: a copy that was broken off is never taken for a whole one
    copy=$PGDATA.copy
    until
        rm -rf -- "$copy"
        pg_basebackup --dbname="$primary" --pgdata="$copy" --slot="$REPLICA" \
            --wal-method=stream --checkpoint=fast --no-password
    do
        echo "replica.sh: the primary cannot be copied yet; trying again in 2 s" >&2
        sleep 2
    done
    touch -- "$copy/standby.signal"
    mv -- "$copy" "$PGDATA"
fi

exec "$@" -c primary_conninfo="$primary" -c primary_slot_name="$REPLICA"

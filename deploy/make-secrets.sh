#!/bin/sh
# Makes the passwords that compose.yml reads, in the folder secrets beside this file. Those that are
# there stay, so it may be run again. To change one: delete its file, run this, tell the server.
set -eu
umask 077
cd -- "$(dirname -- "$0")"
mkdir -p secrets

for name in postgres replication toolkit pgbouncer valkey grafana; do
    file=secrets/${name}_password
    # 192 bits, in digits that need no quoting anywhere
    [ -s "$file" ] || head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$file"
done

# the same in the forms that programs read
# (PgBouncer looks up the roles of its databases, but not who uses its own console)
cat >secrets/pgbouncer_userlist <<END
"pgbouncer_auth" "$(cat secrets/pgbouncer_password)"
"toolkit" "$(cat secrets/toolkit_password)"
END
cat >secrets/valkey_users <<END
user default on nopass -@all +ping
user toolkit on >$(cat secrets/valkey_password) ~tk1:* &tk1:* -@all +@read +@write +@connection +@pubsub +@scripting +@transaction -@dangerous +info
END
printf 'redis://toolkit:%s@valkey:6379/0' "$(cat secrets/valkey_password)" >secrets/redis_url

# each container has a user of its own, which must be able to read; nobody else enters the folder
chmod 0644 secrets/*

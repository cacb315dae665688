#!/bin/sh
# Makes a database if the volume has none, and serves it. It is user 999 from the beginning.
set -eu
cd /var/lib/postgresql
if [ ! -e data ]; then
  # initdb syncs a thousand files, one by one: one sync of them all is as good. Where power fails
  # before the rename, the next start begins anew.
  rm -rf new
  initdb --pgdata new --no-locale --encoding UTF8 --data-checksums --auth trust --no-sync >/dev/null
  echo 'host all all all trust' >>new/pg_hba.conf # nobody else is in the demo's network
  sync -f .
  mv new data
  sync -f .
fi
# After a crash Postgres syncs its thousand files one by one, too, before it recovers.
exec postgres -D data -c 'listen_addresses=*' -c recovery_init_sync_method=syncfs "$@"

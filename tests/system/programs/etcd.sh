# Has etcd's store in /data checked, then puts keys into it with some clients at once, and tells each number when its
# put was answered. With "show" it prints "HOST NUMBER" of every key instead.
set -eu
clients=4
records() {
  etcdctl get --prefix record/ | awk -F / 'NR % 2 { n = $2; next } { print $0, n }'
}
if [ "${1:-}" ]; then
  records
  exit
fi
# A file that etcd has closed well or not: each page is reached once, or free.
[ ! -e /data/etcd ] || etcdctl snapshot status /data/etcd/member/snap/db >&2
serve etcd /data --snapshot-count 100 # so few that a power cut meets a snapshot
last=$(records | awk '$2 > n { n = $2 } END { print n + 0 }')
for client in $(seq $clients); do
  number=$((last + client))
  while etcdctl put "record/$number" "$HOST" >/dev/null; do
    read -r up rest </proc/uptime
    echo "$HOST $number $up" >>"/told/$TELL"
    number=$((number + clients))
  done &
done
wait

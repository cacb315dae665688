# Runs an etcd, puts keys into it, and prints how many milliseconds each put took.
PATH=/usr/bin
etcd --data-dir "$1/etcd" >/dev/null 2>&1 &
until ETCDCTL_API=3 etcdctl endpoint health >/dev/null 2>&1; do sleep 0.2; done
for number in $(seq "$2"); do
  began=$(date +%s%3N)
  ETCDCTL_API=3 etcdctl put "key $number" "$number" >/dev/null
  echo $(($(date +%s%3N) - began))
done

# Has Redis load its log in /data and checks it, then appends to a list with some clients at once, and tells each length
# of it that was answered. With "show" it prints "HOST NUMBER" of every record instead.
set -eu
clients=4
if [ "${1:-}" ]; then
  exec redis-cli --raw eval "
    local sum = 0
    for _, n in ipairs(redis.call('hvals', 'sums')) do sum = sum + n end
    local records = redis.call('lrange', 'records', 0, -1)
    if sum ~= #records then return {'half a command'} end
    for n, host in ipairs(records) do records[n] = host .. ' ' .. n end
    return records" 0
fi
# So small that a power cut meets a log that is written anew.
serve redis /data --auto-aof-rewrite-min-size 256kb --auto-aof-rewrite-percentage 50 --loglevel warning
redis-check-aof /data/appendonlydir/appendonly.aof.manifest >&2
add="redis.call('hincrby', 'sums', ARGV[2], 1) return redis.call('rpush', 'records', ARGV[1])"
for client in $(seq $clients); do
  while :; do
    echo "eval \"$add\" 0 $HOST $((RANDOM % 1000))"
  done | redis-cli -e | while read -r number; do
    read -r up rest </proc/uptime
    echo "$HOST $number $up" >>"/told/$TELL"
  done &
done
wait

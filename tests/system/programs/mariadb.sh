# Has MariaDB recover and check all tables in /data, then makes transactions with some clients at once, and tells the
# number of each when the server has said that it is committed. With "show" it prints "HOST NUMBER" of each instead.
set -eu
clients=4
accounts=10000
if [ "${1:-}" ]; then
  exec mariadb -BN -e 'SELECT host, number FROM transfers' bank
fi
serve mariadb /data --innodb-log-file-size=8M # so small that a power cut meets a checkpoint
mariadb <<END
CREATE DATABASE IF NOT EXISTS bank;
USE bank;
CREATE TABLE IF NOT EXISTS accounts (id INT PRIMARY KEY, balance INT, transfers INT, filling CHAR(100)) ENGINE=InnoDB
  SELECT seq AS id, 0 AS balance, 0 AS transfers, '' AS filling FROM seq_1_to_$accounts;
CREATE TABLE IF NOT EXISTS transfers (number BIGINT AUTO_INCREMENT PRIMARY KEY, host TEXT, filling BLOB) ENGINE=InnoDB;
END
mariadb-check --all-databases --extended | tee /dev/stderr | awk '$NF != "OK" { bad = 1 } END { exit bad }'
sums=$(mariadb -BN -e 'SELECT SUM(balance), SUM(transfers) - 2 * (SELECT COUNT(*) FROM transfers) FROM accounts' bank)
[ "$sums" = "$(printf '0\t0')" ] || { echo "half a transaction: $sums" >&2; exit 1; }
for client in $(seq $clients); do
  while :; do
    from=$((RANDOM * 7 % accounts + 1))
    to=$((from % accounts + 1))
    delta=$((RANDOM % 1000))
    echo "BEGIN;"
    echo "UPDATE accounts SET balance = balance + IF(id = $to, $delta, -$delta), transfers = transfers + 1"
    echo "  WHERE id IN ($from, $to) ORDER BY id;"
    echo "INSERT INTO transfers (host, filling) VALUES ('$HOST', RANDOM_BYTES($delta));"
    echo "COMMIT; SELECT LAST_INSERT_ID();"
  done | mariadb -nBN bank | while read -r number; do
    read -r up rest </proc/uptime
    echo "$HOST $number $up" >>"/told/$TELL"
  done &
done
wait

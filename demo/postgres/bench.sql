-- pgbench's own transaction, with a number of its own for each: what was answered is found again.
\set n :n + 1
\set aid random(1, 100000 * :scale)
\set bid random(1, :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, run, client, n)
  VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP, :run, :client_id, :n);
END;

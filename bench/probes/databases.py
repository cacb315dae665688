"""Has a database or git make something durable again and again. Runs in the image of ``demo/databases_image.py``.

Arguments: directory, what, how often, how many clients at once. Prints ``{"rate"}``: how often in a second.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time

COMMITS = 100
IDENTITY = ["-c", "user.name=nobody", "-c", "user.email=nobody"]


def sqlite(journal):
    """Transactions with one row."""
    database = sqlite3.connect(f"{ROOT}/{journal}.db", isolation_level=None)
    database.execute(f"pragma journal_mode={journal}")
    database.execute("pragma synchronous=full")
    database.execute("create table if not exists records (number integer primary key, filling)")
    filling = os.urandom(100)
    began = time.monotonic()
    for _ in range(COUNT):
        database.execute("insert into records (filling) values (?)", (filling,))
    return COUNT / (time.monotonic() - began)


def served(database, *command):
    """Start the database and have its own client measure it: the one number that counts in what that says."""
    subprocess.run(["serve", database, ROOT], check=True, stdout=sys.stderr)
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (found,) = re.findall(RATES[database], said)
    return float(found)


RATES = {
    "mariadb": r"Average number of seconds to run all queries: ([0-9.]+)",
    "redis": r'"SET","([0-9.]+)"',
    "etcd": r"Requests/sec:\s+([0-9.]+)",
}


def mariadb():
    """Inserts, each a transaction."""
    generate = ["--auto-generate-sql", "--auto-generate-sql-load-type=write", "--engine=InnoDB"]
    clients = [f"--concurrency={CLIENTS}", f"--number-of-queries={COUNT}"]
    return COUNT / served("mariadb", "mariadb-slap", *generate, *clients)


def redis():
    """SETs."""
    count = ["-n", str(COUNT), "-c", str(CLIENTS), "-r", "100000", "-d", "100"]
    return served("redis", "redis-benchmark", "-t", "set", "--csv", *count)


def etcd():
    """Puts."""
    clients = [f"--clients={CLIENTS}", f"--conns={CLIENTS}", f"--total={COUNT}"]
    sizes = ["--sequential-keys", "--key-size=8", "--val-size=256"]
    return served("etcd", "etcd-benchmark", *clients, "put", *sizes)


def git():
    """Pushes of many commits at once, each into a new repository."""
    with tempfile.TemporaryDirectory() as work:
        _git(work, "init", "-q", "--template=")
        for number in range(COMMITS):
            with open(f"{work}/file-{number % 50}", "wb") as file:
                file.write(os.urandom(3000))
            _git(work, "add", ".")
            _git(work, "commit", "-q", "-m", f"{number}")
        seconds = 0.0
        for _ in range(COUNT):
            target = tempfile.mkdtemp(dir=ROOT)
            _git(target, "init", "-q", "--template=", "--bare")
            os.sync()
            began = time.monotonic()
            _git(work, "push", "-q", target, "HEAD:main")
            seconds += time.monotonic() - began
    return COUNT / seconds


def _git(folder, *command):
    subprocess.run(["git", *IDENTITY, *command], cwd=folder, check=True)


WORKS = {
    "sqlite-rollback": lambda: sqlite("delete"),
    "sqlite-wal": lambda: sqlite("wal"),
    "mariadb": mariadb,
    "redis": redis,
    "etcd": etcd,
    "git": git,
}
ROOT, WHAT = sys.argv[1], sys.argv[2]
COUNT, CLIENTS = int(sys.argv[3]), int(sys.argv[4])
print(json.dumps({"rate": WORKS[WHAT]()}))

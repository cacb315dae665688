"""Commits transactions in SQLite, and prints how many milliseconds each took."""

import sqlite3
import sys
import time

database = sqlite3.connect(f"{sys.argv[1]}/commits.db")
database.execute("create table if not exists records (number integer)")
for number in range(int(sys.argv[2])):
    began = time.monotonic()
    with database:
        database.execute("insert into records values (?)", (number,))
    print(int((time.monotonic() - began) * 1000))

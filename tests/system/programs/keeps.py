"""Keeps numbered records, in one of several ways, and tells each number as soon as it is safe.

    python3 keeps.py FOLDER WAY         goes on after the last record that it finds, until it is ended
    python3 keeps.py FOLDER WAY show    prints "HOST NUMBER" of every record

It first has the way check all of its data, and ends with an error where something is wrong. It knows
by the environment who it is (HOST) and in which file of /told it tells (TELL).
"""

import hashlib
import mmap
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import lmdb  # type: ignore[import-not-found]  # only its image has it


class Keeper(Protocol):
    """One of the ways."""

    def add(self, number: int, host: str) -> None:
        """Keep a record. It is safe when this returns."""

    def records(self) -> list[tuple[int, str]]:
        """The number and host of every record, in order; first it checks all of its data."""


class Database:
    """Rows of a SQLite database. Each transaction changes other pages as well: it is there whole or not."""

    def __init__(self, folder: str, journal: str) -> None:
        self.database = sqlite3.connect(f"{folder}/rows.db", timeout=60, isolation_level=None)
        self.ask(f"pragma journal_mode={journal}")
        # With a rollback journal, FULL leaves it to chance whether the end of the last transaction, which
        # is the end of the journal's name, is on disk: only EXTRA syncs the folder then.
        self.ask(f"pragma synchronous={'full' if journal == 'wal' else 'extra'}")
        self.ask("pragma wal_autocheckpoint=50")  # often, so that a cut meets one
        self.ask(
            "create table if not exists rows (number integer primary key, host text, filling blob)"
        )
        self.ask("create index if not exists by_filling on rows (filling)")
        self.ask("create table if not exists sums (slot integer primary key, rows integer)")

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.database.execute(query, values).fetchall()

    def add(self, number: int, host: str) -> None:
        self.ask("begin immediate")
        self.ask(
            "insert into rows values (?, ?, ?)", number, host, os.urandom(random.randrange(3000))
        )
        add = "insert into sums values (?, 1) on conflict do update set rows = rows + 1"
        self.ask(add, random.randrange(1000))
        self.ask("commit")

    def records(self) -> list[tuple[int, str]]:
        self.ask("begin")
        assert self.ask("pragma integrity_check") == [("ok",)], self.ask("pragma integrity_check")
        found = self.ask("select number, host from rows order by number")
        assert self.ask("select coalesce(sum(rows), 0) from sums") == [(len(found),)], (
            "half a transaction"
        )
        self.ask("commit")
        return found


class Mapped:
    """Slots of a file that is mapped: msync of the pages that were written is all that makes them safe."""

    SLOT = 512
    SLOTS = 2**17

    def __init__(self, folder: str) -> None:
        with open(f"{folder}/mapped", "a+b") as file:
            if os.fstat(file.fileno()).st_size != self.SLOT * self.SLOTS:
                file.truncate(self.SLOT * self.SLOTS)
                os.fsync(file.fileno())
            self.map = mmap.mmap(file.fileno(), self.SLOT * self.SLOTS)

    def add(self, number: int, host: str) -> None:
        at = number * self.SLOT
        self.map[at : at + self.SLOT] = _sealed(
            f"{number} {host} ".encode().ljust(self.SLOT - 32, b".")
        )
        page = at - at % mmap.PAGESIZE
        self.map.flush(page, mmap.PAGESIZE)

    def records(self) -> list[tuple[int, str]]:
        """Up to the first slot that is not whole: one that nobody was told of may be half there."""
        found = []
        for number in range(1, self.SLOTS):
            body = _opened(self.map[number * self.SLOT : (number + 1) * self.SLOT])
            if body is None:
                break
            found.append((int(body.split()[0]), body.split()[1].decode()))
        return found


class MappedKeys:
    """Keys of LMDB, which maps its file and calls msync. Each transaction changes a count as well."""

    def __init__(self, folder: str) -> None:
        # Without the writable map it opens its file once more, with O_DSYNC, for the end of each transaction.
        self.file = lmdb.open(f"{folder}/tree", map_size=2**28, writemap=True)
        _sync(f"{folder}/tree")
        _sync(folder)

    def add(self, number: int, host: str) -> None:
        with self.file.begin(write=True) as transaction:
            body = f"{host} ".encode() + os.urandom(random.randrange(3000))
            transaction.put(b"%08d" % number, _sealed(body))
            transaction.put(b"count", b"%d" % number)

    def records(self) -> list[tuple[int, str]]:
        with self.file.begin() as transaction:
            found = dict(transaction.cursor())
            assert transaction.stat()["entries"] == len(found), "keys are missing"
        count = int(found.pop(b"count", b"0"))
        assert count == len(found), "half a transaction"
        records = []
        for key, sealed in found.items():
            body = _opened(sealed)
            assert body is not None, f"{key!r} is not whole"
            records.append((int(key), body.split(b" ", 1)[0].decode()))
        return records


class Maildir:
    """A file for each record, as mail is delivered: written aside, synced, renamed, and the folder synced."""

    def __init__(self, folder: str) -> None:
        self.aside, self.new = f"{folder}/tmp", f"{folder}/new"
        for name in (self.aside, self.new):
            os.makedirs(name, exist_ok=True)
        _sync(folder)

    def add(self, number: int, host: str) -> None:
        name = f"{number}.{host}"
        with open(f"{self.aside}/{name}", "wb") as file:
            file.write(_sealed(os.urandom(random.randrange(20_000))))
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{self.aside}/{name}", f"{self.new}/{name}")
        _sync(self.new)

    def records(self) -> list[tuple[int, str]]:
        """Every file that has its name is whole."""
        found = []
        for name in os.listdir(self.new):
            with open(f"{self.new}/{name}", "rb") as file:
                assert _opened(file.read()) is not None, f"{name} is not whole"
            number, host = name.split(".")
            found.append((int(number), host))
        return sorted(found)


WAYS: dict[str, Callable[[str], Keeper]] = {
    "sqlite-journal": lambda folder: Database(folder, "delete"),
    "sqlite-wal": lambda folder: Database(folder, "wal"),
    "mmap": Mapped,
    "lmdb": MappedKeys,
    "maildir": Maildir,
}


def _sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def _opened(sealed: bytes) -> bytes | None:
    """The body, or None if it is not what was sealed."""
    body = sealed[:-32]
    return body if sealed == _sealed(body) else None


def _sync(folder: str) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(opened)
    os.close(opened)


def main(folder: str, way: str, *show: str) -> None:
    keeper = WAYS[way](folder)
    records = keeper.records()
    if show:
        print("\n".join(f"{host} {number}" for number, host in records))
        return
    number, host = len(records), os.environ["HOST"]
    with open(f"/told/{os.environ['TELL']}", "a", buffering=1) as told:
        while True:
            number += 1
            keeper.add(number, host)
            told.write(f"{host} {number} {time.clock_gettime(time.CLOCK_BOOTTIME):.2f}\n")
            time.sleep(random.random() * 0.004)  # or checks of all that there is would take long


main(*sys.argv[1:])

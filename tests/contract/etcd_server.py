"""Real etcd members on loopback, with mutual TLS, and a link to them that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trustme

_START_SECONDS = 30.0


class Certificates:
    """A CA, one certificate for all members, and clients' contexts.

    Member certificates also carry clientAuth: members and the JSON gateway are clients too.
    """

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.ca = directory / "ca.pem"
        self.certificate = directory / "member.pem"
        self.key = directory / "member.key"
        self._ca.cert_pem.write_to_path(str(self.ca))
        member = self._ca.issue_cert("localhost", "127.0.0.1")
        member.private_key_pem.write_to_path(str(self.key))
        for blob in member.cert_chain_pems:
            blob.write_to_path(str(self.certificate), append=True)

    def client(self) -> ssl.SSLContext:
        """A context with a certificate that the members accept."""
        context = self.client_without_certificate()
        self._ca.issue_cert("client@pannier.test", common_name="node").configure_cert(context)
        return context

    def client_without_certificate(self) -> ssl.SSLContext:
        """A context that trusts the members and has nothing to show."""
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context

    def stranger(self) -> ssl.SSLContext:
        """A context that trusts the members and shows a certificate of another CA."""
        context = self.client_without_certificate()
        trustme.CA().issue_cert("client@pannier.test").configure_cert(context)
        return context


class Member:
    """One etcd process. Faults are verbs: kill, stop, go_on."""

    def __init__(self, name: str, *, directory: Path, certificates: Certificates) -> None:
        self.name = name
        self.client_port, self.peer_port = free_ports(2)
        self._directory = directory
        self._certificates = certificates
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"https://127.0.0.1:{self.peer_port}"

    @property
    def data(self) -> Path:
        """Its directory."""
        return self._directory / self.name

    @property
    def is_running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    def start(self, *, cluster: str, options: Sequence[str] = ()) -> None:
        """Start it. A member that ran before goes on with its data.

        Args:
            options: of etcd's, beside those that all members here have.
        """
        program = shutil.which("etcd")
        if program is None:
            raise RuntimeError("etcd is not installed: `make setup` or apt install etcd-server")
        mine = self._certificates
        with open(self._directory / f"{self.name}.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    # Dies with the test run, however that ends.
                    *("setpriv", "--pdeathsig", "KILL"),
                    program,
                    *("--name", self.name),
                    *("--data-dir", str(self.data)),
                    *("--listen-client-urls", f"https://{self.endpoint}"),
                    *("--advertise-client-urls", f"https://{self.endpoint}"),
                    *("--listen-peer-urls", self.peer_url),
                    *("--initial-advertise-peer-urls", self.peer_url),
                    *("--initial-cluster", cluster),
                    *("--cert-file", str(mine.certificate)),
                    *("--key-file", str(mine.key)),
                    *("--trusted-ca-file", str(mine.ca)),
                    "--client-cert-auth",
                    *("--peer-cert-file", str(mine.certificate)),
                    *("--peer-key-file", str(mine.key)),
                    *("--peer-trusted-ca-file", str(mine.ca)),
                    "--peer-client-cert-auth",
                    # Short, so that elections and the least TTL are; a loaded machine still keeps
                    # a heartbeat within ten.
                    *("--heartbeat-interval", "60"),
                    *("--election-timeout", "600"),
                    *("--log-level", "warn"),
                    *options,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: its sockets stay open, and nobody answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def log(self) -> str:
        """The end of what it wrote."""
        return (self._directory / f"{self.name}.log").read_text(errors="replace")[-2000:]


class EtcdCluster:
    """Members that form one cluster."""

    def __init__(
        self,
        directory: Path,
        *,
        size: int,
        certificates: Certificates | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._options = options
        self.certificates = certificates or Certificates(directory)
        self.members = [
            Member(f"m{number}", directory=directory, certificates=self.certificates)
            for number in range(1, size + 1)
        ]

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def start(self, member: Member) -> None:
        """Start one member, for the first time or again."""
        cluster = ",".join(f"{each.name}={each.peer_url}" for each in self.members)
        member.start(cluster=cluster, options=self._options)

    def member_at(self, endpoint: str) -> Member:
        """The member with this endpoint."""
        return next(member for member in self.members if member.endpoint == endpoint)

    @contextmanager
    def running(self) -> Iterator[EtcdCluster]:
        """All members started, until the end of the block."""
        try:
            for member in self.members:
                self.start(member)
            for member in self.members:
                self.wait_until_serving(member)
            yield self
        finally:
            for member in self.members:
                member.kill()

    def wait_until_serving(self, member: Member) -> None:
        """Wait until a linearizable read through this member succeeds."""
        context = self.certificates.client()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.post(member, "kv/range", b'{"key":"YQ=="}', context=context)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"etcd did not start: {error}\n{member.log()}") from error
                time.sleep(0.05)
            else:
                return

    def post(
        self, member: Member, path: str, body: bytes, *, context: ssl.SSLContext | None = None
    ) -> bytes:
        """A request of the test's own, beside the store under test. Blocks."""
        request = urllib.request.Request(f"https://{member.endpoint}/v3/{path}", data=body)
        used = context or self.certificates.client()
        with urllib.request.urlopen(request, context=used, timeout=2) as answer:
            return bytes(answer.read())

    def restore(self, member: Member, backup: Path) -> None:
        """Make the data of a single member out of a backup, as another cluster. Blocks."""
        self.etcdctl(
            member,
            *("snapshot", "restore", str(backup), "--name", member.name),
            *("--data-dir", str(member.data)),
            *("--initial-cluster", f"{member.name}={member.peer_url}"),
            *("--initial-advertise-peer-urls", member.peer_url),
            *("--initial-cluster-token", "restored"),
        )

    def etcdctl(self, member: Member, *words: str) -> None:
        """One of etcdctl's commands, as an administrator types it. Blocks."""
        mine = self.certificates
        subprocess.run(
            [
                *("etcdctl", f"--endpoints=https://{member.endpoint}", f"--cacert={mine.ca}"),
                *(f"--cert={mine.certificate}", f"--key={mine.key}", *words),
            ],
            env=os.environ | {"ETCDCTL_API": "3"},
            check=True,
            capture_output=True,
        )

    def leader(self) -> Member:
        """The member that leads now."""
        for member in self.members:
            status = json.loads(self.post(member, "maintenance/status", b"{}"))
            if status["header"]["member_id"] == status.get("leader"):
                return member
        raise RuntimeError("no member leads")


class FaultyLink:
    """A TCP link between a client and a member. Faults are verbs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._own_port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._answers = True
        self.swallowed = asyncio.Event()
        """Set when an answer was thrown away."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._own_port}"

    async def open(self) -> None:
        """Accept connections, on the same port as before where there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._own_port)
        self._own_port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset all connections and refuse new ones, until :meth:`open`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Carry nothing, close nothing: a pulled cable."""
        self._flows.clear()

    def lose_answers(self) -> None:
        """Carry requests, and throw the answers away."""
        self._answers = False

    def mend(self) -> None:
        """Undo :meth:`stall` and :meth:`lose_answers`."""
        self._answers = True
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            from_there, there = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers.add(there)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, there, answers=False))
                both.create_task(self._carry(from_there, writer, answers=True))
        except* OSError:
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await source.read(65536):
            await self._flows.wait()
            if answers and not self._answers:
                self.swallowed.set()
                continue
            target.write(data)
            await target.drain()
        raise ConnectionResetError  # One side closed: so does the other.


_FIRST_PORT = 20_000
_PORTS_PER_WORKER = 1_000
"""Below those that the kernel chooses (from 32768 on), so that nobody is given one of them meanwhile."""
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_numbers = itertools.count(os.getpid())  # another run on this host is likely to be elsewhere


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that no other worker of this run is given."""
    found: list[int] = []
    while len(found) < count:
        port = _FIRST_PORT + _worker * _PORTS_PER_WORKER + next(_numbers) % _PORTS_PER_WORKER
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found

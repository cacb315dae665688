"""Docker images for machines that reach no registry."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pannier.lab.errors import LabError
from pannier.lab.machine import Machine
from pannier.lab.process import run

if TYPE_CHECKING:
    from pannier.lab.lab import Lab

DEFAULT_BUSYBOX = "localhost:5000/busybox:1"
_SAVED_BY_DOCKER = {"manifest.json", "index.json", "oci-layout", "repositories"}
_CHANGES = ["-c", "ENV PATH=/bin:/sbin:/usr/bin:/usr/sbin", "-c", 'CMD ["sh"]']


def load(lab: Lab, source: Path, *, tag: str | None) -> None:
    """Put the image in ``source`` into the engine of every running machine.

    A root file system is imported once and copied from there, so that the image has one id.

    Raises:
        LabError: the source is no image, a tag is missing, or an engine refuses it.
    """
    machines = _with_engine(lab)
    if source.is_dir():
        with tempfile.TemporaryFile() as packed:
            run(["tar", "--numeric-owner", "-C", str(source), "-c", "."], stdout=packed)
            _import(lab, machines, packed, _need(tag, source))
        return
    try:
        image = source.open("rb")
    except OSError as error:
        raise LabError(f"cannot read {source}: {error.strerror}") from error
    with image:
        if _is_saved_image(source):
            _spread(lab, machines, image)
        else:
            _import(lab, machines, image, _need(tag, source))


def build_busybox(lab: Lab, tag: str) -> None:
    """Make an image of Debian's static busybox and load it everywhere."""
    machines = _with_engine(lab)
    # Bare machines have none of their own: the host's then.
    folders = [*machines[0].node.layers, "/"]
    candidates = [Path(folder) / "bin/busybox" for folder in folders]
    binary = next(path for path in candidates if path.exists())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("bin", "etc", "root", "tmp", "proc", "sys", "dev"):
            (root / name).mkdir()
        (root / "tmp").chmod(0o1777)
        (root / "bin/busybox").write_bytes(binary.read_bytes())
        (root / "bin/busybox").chmod(0o755)
        for applet in run([str(binary), "--list"]).stdout.split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"
        )
        (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        load(lab, root, tag=tag)


def _with_engine(lab: Lab) -> list[Machine]:
    machines = [each for each in lab.machines() if each.look() in ("running", "cut")]
    if not machines or not _has_docker(lab, machines[0]):
        raise LabError(f"no machine of lab {lab.name} has a running Docker engine")
    return machines


def _has_docker(lab: Lab, machine: Machine) -> bool:
    """Whether it came with an engine, or somebody has installed one on a bare machine."""
    look = ["sh", "-c", "command -v docker"]
    return not machine.state.bare or lab.run(machine.node.name, look, check=False).returncode == 0


def _import(lab: Lab, machines: list[Machine], rootfs: IO[bytes], tag: str) -> None:
    lab.report(f"importing {tag}")
    rootfs.seek(0)
    first, others = machines[0], machines[1:]
    lab.run(first.node.name, ["docker", "import", *_CHANGES, "-", tag], stdin=rootfs)
    if others:
        with tempfile.TemporaryFile() as saved:
            lab.run(first.node.name, ["docker", "save", tag], stdout=saved)
            _spread(lab, others, saved)
    lab.flush()


def _spread(lab: Lab, machines: list[Machine], saved: IO[bytes]) -> None:
    lab.report(f"loading the image into {len(machines)} engines")

    def put(machine: Machine) -> None:
        # Each needs a reading position of its own.
        with open(f"/proc/self/fd/{saved.fileno()}", "rb") as own:
            lab.run(machine.node.name, ["docker", "load", "--quiet"], stdin=own)

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(put, machines))
    lab.flush()


def _is_saved_image(source: Path) -> bool:
    try:
        with tarfile.open(source) as archive:
            return any(member.name in _SAVED_BY_DOCKER for member in archive)
    except tarfile.TarError as error:
        raise LabError(f"{source} is no tar archive: {error}") from error


def _need(tag: str | None, source: Path) -> str:
    if not tag:
        raise LabError(
            f"{source} is a root file system without a name", remedy="give it one with --tag NAME"
        )
    return tag


@contextmanager
def spooled(stream: IO[bytes]) -> Iterator[Path]:
    """A file with everything that ``stream`` has to say."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as spool:
        while chunk := stream.read(1 << 20):
            spool.write(chunk)
        spool.flush()
        yield Path(spool.name)

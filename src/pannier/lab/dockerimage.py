"""Docker images for machines that reach no registry."""

from __future__ import annotations

import json
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO

from pannier.lab.errors import LabError
from pannier.lab.machine import Machine
from pannier.lab.process import run

DEFAULT_BUSYBOX = "localhost:5000/busybox:1"
_REGISTRY = "localhost:5000/"
"""Where the registry stack is, on every node."""
_SAVED_BY_DOCKER = {"manifest.json", "index.json", "oci-layout", "repositories"}
_CHANGES = ["-c", "ENV PATH=/bin:/sbin:/usr/bin:/usr/sbin", "-c", 'CMD ["sh"]']


def load(
    machines: list[Machine], source: Path, *, tag: str | None, report: Callable[[str], None]
) -> None:
    """Put the image in ``source`` into the engine of each of these machines.

    A root file system is imported on one machine, and the others get the image from there, so that it
    has one id. If the image's name leads to a registry of the cluster, they pull it from that.

    Raises:
        LabError: the source is no image, a tag is missing, or an engine refuses it.
    """
    if source.is_dir():
        with tempfile.TemporaryFile() as packed:
            run(["tar", "--numeric-owner", "-C", str(source), "-c", "."], stdout=packed)
            _import(machines, packed, _need(tag, source), report)
    else:
        _load_file(machines, source, tag, report)


def build_busybox(machines: list[Machine], tag: str, *, report: Callable[[str], None]) -> None:
    """Make an image of Debian's static busybox and load it into these machines."""
    # Bare machines have no busybox: the host's is used then.
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
        load(machines, root, tag=tag, report=report)


def has_docker(machine: Machine) -> bool:
    """Whether it came with an engine, or somebody has installed one on a bare machine."""
    look = ["sh", "-c", "command -v docker"]
    return not machine.state.bare or machine.run(look, check=False).returncode == 0


def _load_file(
    machines: list[Machine], source: Path, tag: str | None, report: Callable[[str], None]
) -> None:
    try:
        image = source.open("rb")
    except OSError as error:
        raise LabError(f"cannot read {source}: {error.strerror}") from error
    with image:
        if not _is_saved_image(source):
            _import(machines, image, _need(tag, source), report)
        elif _has_registry(machines[0], names := _names(source)):
            _load(machines[:1], image, report)
            _hand_out(machines, names, report)
        else:
            _load(machines, image, report)


def _import(
    machines: list[Machine], rootfs: IO[bytes], tag: str, report: Callable[[str], None]
) -> None:
    report(f"importing {tag}")
    rootfs.seek(0)
    first = machines[0]
    first.run(["docker", "import", *_CHANGES, "-", tag], stdin=rootfs)
    if _has_registry(first, [tag]):
        _hand_out(machines, [tag], report)
    elif len(machines) > 1:
        with tempfile.TemporaryFile() as saved:
            first.run(["docker", "save", tag], stdout=saved)
            _load(machines[1:], saved, report)


def _load(machines: list[Machine], saved: IO[bytes], report: Callable[[str], None]) -> None:
    report(f"loading the image into {len(machines)} engines")

    def put(machine: Machine) -> None:
        # Each needs a reading position of its own.
        with open(f"/proc/self/fd/{saved.fileno()}", "rb") as own:
            machine.run(["docker", "load", "--quiet"], stdin=own)

    _on_all(machines, put)


def _has_registry(machine: Machine, names: Sequence[str]) -> bool:
    """Whether these images' names lead to a registry that the cluster has."""
    if not names or not all(name.startswith(_REGISTRY) for name in names):
        return False
    at = f"http://{machine.node.address}:{_REGISTRY.strip('/').partition(':')[2]}/v2/"
    try:
        with urllib.request.urlopen(at, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def _hand_out(machines: list[Machine], names: Sequence[str], report: Callable[[str], None]) -> None:
    """Push the images from the first machine to the registry, and let the others pull them."""
    for name in names:
        report(f"pushing {name}; {len(machines) - 1} engines pull it")
        machines[0].run(["docker", "push", "--quiet", name])

    def pull(machine: Machine) -> None:
        for name in names:
            machine.run(["docker", "pull", "--quiet", name])

    _on_all(machines[1:], pull)


def _on_all(machines: list[Machine], work: Callable[[Machine], object]) -> None:
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(work, machines))


def _is_saved_image(source: Path) -> bool:
    try:
        with tarfile.open(source) as archive:
            return any(member.name in _SAVED_BY_DOCKER for member in archive)
    except tarfile.TarError as error:
        raise LabError(f"{source} is no tar archive: {error}") from error


def _names(saved: Path) -> list[str]:
    """The names of the images that `docker save` has written."""
    with tarfile.open(saved) as archive:
        try:
            listed = archive.extractfile("manifest.json")
        except KeyError:
            return []
        images = json.load(listed) if listed else []
    return [name for image in images for name in image.get("RepoTags") or []]


def _need(tag: str | None, source: Path) -> str:
    if not tag:
        raise LabError(
            f"{source} is a root file system without a name", remedy="give it one with --tag NAME"
        )
    return tag


@contextmanager
def spooled(stream: IO[bytes]) -> Iterator[Path]:
    """A temporary file with everything that ``stream`` gives."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as spool:
        while chunk := stream.read(1 << 20):
            spool.write(chunk)
        spool.flush()
        yield Path(spool.name)

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
from typing import IO, TYPE_CHECKING

from pannier.lab.errors import LabError
from pannier.lab.machine import Machine
from pannier.lab.process import run

if TYPE_CHECKING:
    from pannier.lab.lab import Lab

DEFAULT_BUSYBOX = "localhost:5000/busybox:1"
_REGISTRY = "localhost:5000/"
"""Where the registry stack is, on every node."""
_SAVED_BY_DOCKER = {"manifest.json", "index.json", "oci-layout", "repositories"}
_CHANGES = ["-c", "ENV PATH=/bin:/sbin:/usr/bin:/usr/sbin", "-c", 'CMD ["sh"]']


def load(lab: Lab, source: Path, *, tag: str | None) -> None:
    """Put the image in ``source`` into the engine of every running machine.

    One machine gets it, and the others have it from there, so that a root file system has one id. Where
    the cluster has a registry of its own, they pull it from that.

    Raises:
        LabError: the source is no image, a tag is missing, or an engine refuses it.
    """
    machines = _with_engine(lab)
    if source.is_dir():
        with tempfile.TemporaryFile() as packed:
            run(["tar", "--numeric-owner", "-C", str(source), "-c", "."], stdout=packed)
            _import(lab, machines, packed, _need(tag, source))
    else:
        _load_file(lab, machines, source, tag)
    lab.flush()


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


def _load_file(lab: Lab, machines: list[Machine], source: Path, tag: str | None) -> None:
    try:
        image = source.open("rb")
    except OSError as error:
        raise LabError(f"cannot read {source}: {error.strerror}") from error
    with image:
        if not _is_saved_image(source):
            _import(lab, machines, image, _need(tag, source))
        elif _has_registry(machines[0], names := _names(source)):
            _load(lab, machines[:1], image)
            _hand_out(lab, machines, names)
        else:
            _load(lab, machines, image)


def _import(lab: Lab, machines: list[Machine], rootfs: IO[bytes], tag: str) -> None:
    lab.report(f"importing {tag}")
    rootfs.seek(0)
    first = machines[0]
    lab.run(first.node.name, ["docker", "import", *_CHANGES, "-", tag], stdin=rootfs)
    if _has_registry(first, [tag]):
        _hand_out(lab, machines, [tag])
    elif len(machines) > 1:
        with tempfile.TemporaryFile() as saved:
            lab.run(first.node.name, ["docker", "save", tag], stdout=saved)
            _load(lab, machines[1:], saved)


def _load(lab: Lab, machines: list[Machine], saved: IO[bytes]) -> None:
    lab.report(f"loading the image into {len(machines)} engines")

    def put(machine: Machine) -> None:
        # Each needs a reading position of its own.
        with open(f"/proc/self/fd/{saved.fileno()}", "rb") as own:
            lab.run(machine.node.name, ["docker", "load", "--quiet"], stdin=own)

    _on_all(machines, put)


def _has_registry(machine: Machine, names: Sequence[str]) -> bool:
    """Whether the cluster has a registry where these images' names lead to."""
    if not names or not all(name.startswith(_REGISTRY) for name in names):
        return False
    at = f"http://{machine.node.address}:{_REGISTRY.strip('/').partition(':')[2]}/v2/"
    try:
        with urllib.request.urlopen(at, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def _hand_out(lab: Lab, machines: list[Machine], names: Sequence[str]) -> None:
    """From the first machine to the registry, and from there to the others."""
    for name in names:
        lab.report(f"pushing {name}; {len(machines) - 1} engines pull it")
        lab.run(machines[0].node.name, ["docker", "push", "--quiet", name])

    def pull(machine: Machine) -> None:
        for name in names:
            lab.run(machine.node.name, ["docker", "pull", "--quiet", name])

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
    """A file with everything that ``stream`` has to say."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as spool:
        while chunk := stream.read(1 << 20):
            spool.write(chunk)
        spool.flush()
        yield Path(spool.name)

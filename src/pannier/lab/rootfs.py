"""The machines' root file system, in three cached layers.

``base`` is Debian with the packages below; ``deps`` a virtual environment with Pannier's own
dependencies, made by that Debian's Python; ``app`` is Pannier itself as it is installed here. Each
is a folder named after a hash of what went into it, complete as soon as it has its name, never
changed afterwards and shared by all machines.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pannier.lab import appfiles
from pannier.lab.errors import LabError
from pannier.lab.mirror import download_environment, mirror
from pannier.lab.paths import cache_root, run_root
from pannier.lab.process import run
from pannier.lab.state import Release, locked

Report = Callable[[str], None]

_BARE = [
    *("systemd", "systemd-sysv", "dbus", "iproute2", "procps", "kmod"),
    *("python3", "openssh-server", "ca-certificates", "rsync", "sudo"),
]
_FULL = [
    *("docker.io", "containerd", "runc", "iptables", "btrfs-progs", "e2fsprogs", "attr", "acl"),
    *("etcd-server", "etcd-client", "python3-venv", "busybox-static", "curl"),
    *("docker-compose", "restic"),
]
_ONLY_TRIXIE = ["docker-cli"]  # bookworm's docker.io contains the client

_FOR_CLUSTER_ONLY = ("etcd.service",)
_USELESS_HERE = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "systemd-pstore.service",
)
_RECIPE = 3
"""Raise it when the way in which layers are built changes."""

_KEPT = 3
"""Layers of each kind that stay in the cache beside those in use: for other checkouts."""

# A build works as root, so nothing of the host is mounted where it works: it gets copies.
_ENTER = """
set -eu
mount -t overlay overlay -o "lowerdir=$BELOW,upperdir=$DRAFT/upper,workdir=$DRAFT/work" "$DRAFT/root"
mount -t tmpfs tmpfs "$DRAFT/root/dev"
mknod -m 0666 "$DRAFT/root/dev/null" c 1 3
mknod -m 0666 "$DRAFT/root/dev/urandom" c 1 9
mount -t proc proc "$DRAFT/root/proc"
"""
_BUILD_DEPS = """
chroot "$DRAFT/root" python3 -m venv /opt/pannier/venv
chroot "$DRAFT/root" /opt/pannier/venv/bin/pip install --no-cache-dir --quiet "$@"
"""
_COMPILE_APP = """
chroot "$DRAFT/root" /opt/pannier/venv/bin/python -m compileall -q "$PACKAGE"
"""


def build_all(
    releases: Iterable[Release], *, bare: bool, report: Report
) -> dict[Release, tuple[str, ...]]:
    """Make what is not in the cache yet, the releases side by side; returns the layers of each."""
    wanted = sorted(set(releases))
    with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
        built = pool.map(lambda each: build(each, bare=bare, report=report), wanted)
        return dict(zip(wanted, built, strict=True))


def build(release: Release, *, bare: bool, report: Report) -> tuple[str, ...]:
    """Make what is not in the cache yet and return the layers, topmost first.

    Only one process at a time builds for a release; the others wait and then find the work done.
    """
    root = cache_root()
    with locked(root / f".{release}.lock", waiting=report):
        for garbage in root.glob(f"draft-*-{release}*"):
            _remove(garbage)
        layers = [_base(root, release, bare, report)]
        if not bare:
            layers.insert(0, _deps(root, release, layers[0], report))
            layers.insert(0, _app(root, release, layers[1], layers[0], report))
        for layer in layers:
            layer.touch()
            _forget_older(layer)
    return tuple(str(layer) for layer in layers)


def _base(root: Path, release: Release, bare: bool, report: Report) -> Path:
    packages = _BARE if bare else [*_BARE, *_FULL, *(_ONLY_TRIXIE if release == "trixie" else [])]
    kind = f"{'bare' if bare else 'base'}-{release}"
    layer = root / f"{kind}-{_digest(_RECIPE, packages, _USELESS_HERE)}"
    if layer.exists():
        return layer
    report(f"building {release} from packages (once; about a minute)")
    with _draft(root, layer.name, layer) as draft:
        target = draft / "upper"
        options = ["--variant=minbase", f"--include={','.join(packages)}"]
        run(
            [*_alone(), "debootstrap", *options, release, str(target), mirror()],
            env=download_environment(),
            what="debootstrap",
        )
        _trim(target)
    return layer


def _trim(target: Path) -> None:
    """Remove what is only of use for installing, and what would be the same on all machines."""
    for folder in (
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log",
        "usr/share/doc",
        "usr/share/man",
    ):
        _empty(target / folder)
    for path in (target / "etc/ssh").glob("ssh_host_*"):
        path.unlink()
    for name in (
        "etc/apt/sources.list",
        "etc/machine-id",
        "var/lib/dbus/machine-id",
        "etc/hostname",
    ):
        (target / name).unlink(missing_ok=True)
    (target / "etc/resolv.conf").unlink(missing_ok=True)
    (target / "etc/resolv.conf").touch()
    systemctl = ["systemctl", f"--root={target}"]
    run([*systemctl, "disable", *_FOR_CLUSTER_ONLY], check=False)
    run([*systemctl, "mask", *_USELESS_HERE])


def _deps(root: Path, release: Release, base: Path, report: Report) -> Path:
    requirements = appfiles.requirements()
    layer = root / f"deps-{release}-{_digest(base.name, requirements)}"
    if layer.exists():
        return layer
    report("installing Pannier's dependencies")
    with _draft(root, layer.name, layer) as draft:
        environment = {
            **download_environment(),
            "BELOW": str(base),
            "DRAFT": str(draft),
        }
        appfiles.copy_pip_settings(draft / "upper")
        script = [*_alone(), "sh", "-c", _ENTER + _BUILD_DEPS, "sh", *requirements]
        run(script, env=environment, what="pip install")
        # The host's mirror settings must not stay in the machines: keep only this folder.
        _keep_only(draft, "opt/pannier")
    return layer


def _app(root: Path, release: Release, base: Path, deps: Path, report: Report) -> Path:
    with _draft(root, f"app-{release}") as draft:
        upper = draft / "upper"
        packages = next((deps / "opt/pannier/venv/lib").glob("python3.*")) / "site-packages"
        inside = Path("/") / packages.relative_to(deps)
        appfiles.copy_to(upper, site_packages=inside)
        layer = root / f"app-{release}-{_digest(deps.name, appfiles.digest(upper))}"
        if layer.exists():
            return layer
        report("installing Pannier")
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "BELOW": f"{deps}:{base}",
            "DRAFT": str(draft),
            "PACKAGE": str(inside / "pannier"),
        }
        run([*_alone(), "sh", "-c", _ENTER + _COMPILE_APP], env=environment, what="compileall")
        upper.rename(layer)
        return layer


def _forget_older(layer: Path) -> None:
    """Remove old layers of the same kind, except the latest few and those that any lab uses."""
    in_use = "".join(path.read_text() for path in run_root().glob("*/state.json"))
    kind = layer.name.rpartition("-")[0]
    alike = sorted(layer.parent.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
    for old in alike[:-_KEPT]:
        if old != layer and old.name not in in_use:
            # A layer with its own name counts as complete, so it is renamed first.
            old = old.rename(layer.parent / f"draft-{old.name}")
            _remove(old)


@contextmanager
def _draft(root: Path, name: str, layer: Path | None = None) -> Iterator[Path]:
    """A folder to build in; its ``upper`` becomes the layer, if one is given and all goes well."""
    draft = root / f"draft-{name}"
    for name in ("upper", "work", "root"):
        (draft / name).mkdir(parents=True)
    try:
        yield draft
        if layer:
            # The name may exist only once the content is on the disk.
            run(["sync", "--file-system", str(draft)])
            (draft / "upper").rename(layer)
    finally:
        _remove(draft)


def _alone() -> list[str]:
    """Words before a command that give it its own mount and process namespaces.

    When it ends, or this process does, nothing is left of it.
    """
    return ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _keep_only(draft: Path, folder: str) -> None:
    kept = draft / "kept" / folder
    kept.parent.mkdir(parents=True)
    (draft / "upper" / folder).rename(kept)
    _remove(draft / "upper")
    (draft / "kept").rename(draft / "upper")


def _empty(folder: Path) -> None:
    if folder.is_symlink():
        raise LabError(f"{folder} is a symbolic link: what it points to may be the host's")
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove(entry)
        else:
            entry.unlink()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)

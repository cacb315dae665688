"""The daemon's configuration, ``/etc/pannier/pannierd.toml``, written by ``init`` and ``join``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from pannier.core.duration import parse_duration
from pannier.core.errors import InvalidInput
from pannier.core.node import API_PORT, TRANSPORT_PORT
from pannier.core.size import parse_size
from pannier.host.files import write_file

CONFIG_DIRECTORY = Path("/etc/pannier")
STATE_DIRECTORY = Path("/var/lib/pannier")
RUN_DIRECTORY = Path("/run/pannier")


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a node's daemon keeps things.

    Attributes:
        config: settings, certificates and keys.
        state: what survives a reboot, such as the volumes' data.
        run: on a tmpfs: what survives the daemon's end, but not a reboot.
    """

    config: Path
    state: Path
    run: Path

    @property
    def mounts(self) -> Path:
        """The directory with the paths that Docker is given."""
        return self.state / "mounts"

    @property
    def pool(self) -> Path:
        """Where the btrfs pool is mounted."""
        return self.state / "pool"


PATHS = Paths(config=CONFIG_DIRECTORY, state=STATE_DIRECTORY, run=RUN_DIRECTORY)


class Config(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Settings of one node.

    Attributes:
        node: this node's name in the cluster.
        cluster: the cluster's id; a store that says otherwise is refused.
        address: where other nodes reach this one: IP address or host name.
        store: ``etcd://HOST:PORT,...`` or ``sqlite:/FILE``.
        drivers: storage drivers, the default one first.
        pool: block device or sparse file of the btrfs pool.
        lease_seconds: time after a node's last sign of life until its volumes may be taken over by
            others. A shorter time notices a lost node sooner, a longer one tolerates a slower store;
            see docs/guarantees.md.
        catch_up_rate: what this node sends at most in a second to copies that were away, such as ``50M``;
            None for as much as disk and network give. Sync calls and moves are not held to it.
        trash_time: how long removed volumes of this node can be restored, such as ``24h``, while its daemon runs.
            They give their room before that where writers would else stand still.
        trash_size: what they may take in the pool, such as ``50G``; the oldest go when it is more. None for what
            there is room for.
        evacuate: whether this node, where its engine is a Swarm manager, drains lost nodes in Swarm.
        api_port, transport_port: this node's TCP ports; its record tells them to the other nodes.
    """

    node: str
    cluster: str
    address: str
    store: str
    drivers: tuple[str, ...]
    pool: str | None = None
    lease_seconds: float = 4.0
    catch_up_rate: str | None = None
    trash_time: str = "24h"
    trash_size: str | None = None
    evacuate: bool = False
    api_port: int = API_PORT
    transport_port: int = TRANSPORT_PORT

    def __post_init__(self) -> None:
        self.catch_up_bytes_per_second()
        self.trash_seconds()
        self.trash_bytes()

    def catch_up_bytes_per_second(self) -> int | None:
        """``catch_up_rate`` as a number. InvalidInput: it is none."""
        if self.catch_up_rate is None:
            return None
        try:
            return parse_size(self.catch_up_rate)
        except InvalidInput:
            raise InvalidInput(
                f"catch_up_rate = {self.catch_up_rate!r} is not a rate from 1M to 64P a second",
                remedy='write a number and K, M or G, such as "50M"',
            ) from None

    def trash_seconds(self) -> float:
        """``trash_time`` as a number. InvalidInput: it is none."""
        try:
            return parse_duration(self.trash_time)
        except InvalidInput as error:
            raise InvalidInput(
                f"trash_time = {self.trash_time!r} is not a time", remedy=error.remedy
            ) from None

    def trash_bytes(self) -> int | None:
        """``trash_size`` as a number. InvalidInput: it is none."""
        if self.trash_size is None:
            return None
        try:
            return parse_size(self.trash_size)
        except InvalidInput:
            raise InvalidInput(
                f"trash_size = {self.trash_size!r} is not a size from 1M to 64P",
                remedy='write a number and M, G or T, such as "50G"',
            ) from None


def load_config(directory: Path = CONFIG_DIRECTORY) -> Config:
    """Read the configuration.

    Raises:
        InvalidInput: it is missing, cannot be read, or has an invalid setting.
    """
    file = directory / "pannierd.toml"
    try:
        return msgspec.toml.decode(file.read_bytes(), type=Config)
    except FileNotFoundError:
        raise InvalidInput(
            f"{file} is not there: this machine belongs to no cluster",
            remedy="run pannier init, or pannier join ADDRESS --token TOKEN",
        ) from None
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error.message}", remedy=error.remedy) from error
    except (msgspec.DecodeError, OSError, ValueError) as error:
        raise InvalidInput(f"{file}: {error}", remedy="mend that line") from error


def save_config(config: Config, directory: Path = CONFIG_DIRECTORY) -> None:
    """Write the configuration, readable by root only, whole or not at all."""
    lines = ["# Written by pannier init or join. Restart pannierd after a change."]
    for name in Config.__struct_fields__:
        value = getattr(config, name)
        if value is not None:
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    write_file(directory / "pannierd.toml", "".join(f"{line}\n" for line in lines).encode())

"""Machines become nodes, or are refused: pools, tokens, leaving and coming back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from cluster_world import MOUNTS, STAGING, World, check_sequence
from demo import story

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DEVICE = "/dev/pannier-pool"
RESET = f"""
systemctl stop pannierd.socket pannierd.service 2>/dev/null || :
docker ps -aq | xargs -r docker rm -f >/dev/null
umount {MOUNTS}/* {STAGING}/* 2>/dev/null || :
umount /var/lib/pannier/pool 2>/dev/null || :
chattr -i {MOUNTS}/* 2>/dev/null || :
rm -rf /var/lib/pannier/* /etc/pannier/* /root/*.img
wipefs -aq {DEVICE}
dd if=/dev/zero of={DEVICE} bs=1M count=8 conv=notrunc,fsync status=none
"""


@pytest.fixture
def blank(blank_lab: Lab) -> World:
    """The second machine is as new, whatever the test before has left."""
    world = World(blank_lab)
    world.sh("node2", RESET)
    forget(world)
    return world


def forget(world: World) -> None:
    """Take node2 out of the cluster, with all that only it has: a test's end, not a user's way."""
    script = (
        'export ETCDCTL_API=3; e="etcdctl --cacert=/etc/etcd/pki/ca.crt --cert=/etc/etcd/pki/tls.crt '
        f'--key=/etc/etcd/pki/tls.key --endpoints=https://{world.lab.nodes[0].address}:2379"; '
        "for k in $($e get '' --prefix --keys-only); do "
        "case $k in */nodes/node2|*/alive/node2|*/volumes/*|*/trash/*) $e del $k;; esac; done"
    )
    world.sh("node1", script)


def token(world: World, *options: str) -> str:
    made: str = world.printed("node1", "token", "create", *options)["token"]
    return made


def join(world: World, text: str, *options: str) -> list[str]:
    own = ["--address", world.lab.nodes[1].address, *(options or ("--pool", DEVICE))]
    return ["pannier", "join", world.lab.nodes[0].address, "--token", text, *own]


def init(*options: str) -> list[str]:
    return ["pannier", "init", "--name", "node2", *options]


def check_no_node(world: World) -> None:
    """The machine belongs to nothing, and the cluster knows nothing of it."""
    assert world.attempt("node2", "test", "-e", "/etc/pannier/pannierd.toml").status != 0
    assert [each["name"] for each in world.json("node1", "node", "ls")] == ["node1"]


# -- pools ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "holds"),
    [
        ("mkfs.ext4 -q -F -L precious $d", 'ext4 "precious"'),
        ("mkfs.btrfs -q -f -L other $d", 'btrfs "other"'),
        ("printf 'LUKS\\272\\276\\000\\001' | dd of=$d conv=notrunc status=none", "crypto_LUKS"),
        ("mkswap -q $d", "swap"),
        ("dd if=/dev/urandom of=$d bs=4k count=4 seek=7 conv=notrunc status=none", "data"),
    ],
    ids=["ext4", "btrfs", "luks", "swap", "unknown"],
)
def test_f55_a_disk_with_something_on_it_is_not_touched(
    blank: World, make: str, holds: str
) -> None:
    blank.sh("node2", f"d={DEVICE}; {make}")
    before = blank.sh("node2", f"head -c 64M {DEVICE} | sha256sum")
    for command in (init("--pool", DEVICE), join(blank, token(blank))):
        says = [f"{DEVICE} holds {holds}", "not touched", "--force-format"]
        blank.refused("node2", *command, says=says, status=7)
        wrong = [*command, "--force-format", "/dev/sdz"]
        blank.refused("node2", *wrong, says=["--force-format /dev/sdz is not the pool"], status=2)
    assert blank.sh("node2", f"head -c 64M {DEVICE} | sha256sum") == before
    check_no_node(blank)


def test_f55_a_disk_is_formatted_for_whoever_names_it_twice(blank: World) -> None:
    """And the refusal before has not used up the token."""
    blank.sh("node2", f"mkfs.ext4 -q -F -L precious {DEVICE}")
    command = join(blank, token(blank))
    blank.refused("node2", *command, says=["precious"], status=7)
    blank.run("node2", *command, "--force-format", DEVICE)
    blank.wait_until_all_up()
    name = blank.create("node2")
    assert blank.container("node2", name, "echo", "fine") == "fine\n"


@pytest.mark.parametrize(
    ("options", "says", "status"),
    [
        (["--pool", "/dev/nothing"], ["there is no device /dev/nothing", "lsblk"], 7),
        (["--pool", "/root/text.img"], ["/root/text.img holds data", "not touched"], 7),
        (["--pool", "/root"], ["/root is neither a block device nor a file"], 7),
        (["--pool", DEVICE, "--pool-size", "1G"], [DEVICE, "has its own size"], 2),
        (["--pool-size", "10M"], ["at least 128M"], 2),
        (["--pool-size", "much"], ["much", "is not a size"], 2),
        (["--driver", "directory", "--pool", DEVICE], ["the directory driver has no pool"], 2),
        (["--name", "a b"], ["cannot name a node"], 2),
        (["--store", "redis://x"], ["redis"], 2),
    ],
)
def test_f81_a_pool_or_name_that_cannot_be(
    blank: World, options: list[str], says: list[str], status: int
) -> None:
    blank.sh("node2", "echo my notes >/root/text.img")
    blank.refused("node2", *init(*options), says=says, status=status)
    assert blank.run("node2", "cat", "/root/text.img") == "my notes\n"
    check_no_node(blank)


def test_a_pool_in_use_is_not_taken(blank: World) -> None:
    blank.sh("node2", f"mkfs.ext4 -q -F {DEVICE}; mkdir -p /mnt/x; mount {DEVICE} /mnt/x")
    command = init("--pool", DEVICE, "--force-format", DEVICE)
    try:
        blank.refused("node2", *command, says=[f"{DEVICE} is in use"], status=7)
    finally:
        blank.run("node2", "umount", "/mnt/x")
    check_no_node(blank)


def test_f52_a_full_pool_says_so_and_loses_nothing(blank: World) -> None:
    """Who writes stands still, and creating and moving there are refused. A larger pool lets it go on."""
    blank.run("node2", *join(blank, token(blank), "--pool-size", "300M"))
    blank.wait_until_all_up()
    small, large = blank.create("node2"), blank.create("node1")
    blank.container("node2", small, "sh", "-c", "echo kept >/data/note; sync")
    flood = blank.docker_run(small, "-d", "--name", f"flood-{small}")
    # Not as fast as it can: on a pool this small that may be faster than anybody can look.
    writes = "while dd if=/dev/urandom bs=1M count=1 >>/data/bulk; do sleep 0.01; done"
    blank.run("node2", *flood, "sh", "-c", writes)
    story.wait_until(
        "it stands still",
        lambda: blank.json("node2", "volume", "show", small)["stands_still"],
    )
    blank.container("node1", large, "dd", "if=/dev/urandom", "of=/data/bulk", "bs=1M", "count=400")
    before = blank.manifest("node1", large)
    outcome = blank.refused(
        "node1", "pannier", "volume", "move", large, "node2", says=["node2"], status=7
    )
    assert "full" in outcome.text or "no room" in outcome.text or "No space" in outcome.text
    assert blank.holder(large) == "node1"
    assert blank.manifest("node1", large) == before
    told = [finding["what"] for finding in blank.json("node2", "doctor")]
    assert any("nobody can write to it on node2" in what for what in told), told
    blank.refused(
        "node2", "pannier", "pool", "grow", "--size", "200M", says=["can only grow"], status=2
    )
    grown = blank.printed("node2", "pool", "grow", "--size", "1200M")
    assert grown["total_bytes"] == 1200 << 20
    blank.run("node2", "docker", "wait", f"flood-{small}")  # its volume is as large as the pool was
    assert "No space left" in blank.attempt("node2", "docker", "logs", f"flood-{small}").text
    blank.run("node2", "docker", "rm", f"flood-{small}")
    blank.container("node2", small, "rm", "/data/bulk")
    blank.move(small, "node1")
    assert blank.container("node1", small, "cat", "/data/note") == "kept\n"


def test_f53_a_size_stops_a_runaway(blank: World) -> None:
    name = blank.create("node1", size="64M")
    other = blank.create("node1")
    blank.container("node1", name, "sh", "-c", "echo kept >/data/note; sync")
    script = "dd if=/dev/urandom of=/data/bulk bs=1M count=400 2>&1; sync"
    full = blank.attempt("node1", *blank.docker_run(name, "--rm"), "sh", "-c", script)
    assert "quota exceeded" in full.text.lower() or "No space left" in full.text
    assert (
        blank.container("node1", other, "sh", "-c", "echo fine >/data/x; cat /data/x") == "fine\n"
    )
    assert blank.container("node1", name, "cat", "/data/note") == "kept\n"


# -- tokens -----------------------------------------------------------------------------------------


def test_f83_a_token_that_has_expired(blank: World) -> None:
    text = token(blank, "--ttl", "1s")
    end = time.monotonic() + 1.2
    story.wait_until("its time is over", lambda: time.monotonic() > end)
    says = ["the join token has expired", "pannier token create"]
    blank.refused("node2", *join(blank, text), says=says, status=5)
    check_no_node(blank)


def test_f83_a_token_that_was_used_before(blank: World) -> None:
    text = token(blank)
    blank.run("node2", *join(blank, text))
    blank.wait_until_all_up()
    blank.sh("node2", RESET)
    forget(blank)
    says = ["the join token is not known here", "pannier token create"]
    blank.refused("node2", *join(blank, text), says=says, status=5)
    check_no_node(blank)


@pytest.mark.parametrize(
    ("change", "says", "status"),
    [
        (lambda text: text[:-1], ["this is not a join token"], 2),
        (lambda text: "", ["this is not a join token"], 2),
        (lambda text: text[:-64] + "0" * 64, ["cluster"], 5),
        (lambda text: text.replace(text[18:22], "aaaa"), ["not known here"], 5),
    ],
    ids=["cut short", "empty", "another cluster's", "guessed"],
)
def test_f83_a_token_that_is_wrong(
    blank: World, change: Callable[[str], str], says: list[str], status: int
) -> None:
    blank.refused("node2", *join(blank, change(token(blank))), says=says, status=status)
    check_no_node(blank)


def test_f83_a_real_token_of_another_cluster(blank: World) -> None:
    """It is not even shown to the wrong cluster: the machine there is not who the token says."""
    blank.run("node2", *init("--pool", DEVICE, "--store", "sqlite"))
    blank.refused(
        "node2", "pannier", "token", "create", says=["store", "which no other node can reach"],
        status=4,
    )  # fmt: skip
    other = blank.run("node2", "sha256sum", "/etc/pannier/ca.crt").split()[0]
    blank.sh("node2", RESET)
    text = token(blank)
    blank.refused("node2", *join(blank, text[:-64] + other), says=["cluster"], status=5)
    check_no_node(blank)


def test_a_name_that_is_taken(blank: World) -> None:
    text = token(blank)
    says = ["there is a node node1 in this cluster", "choose another --name"]
    blank.refused("node2", *join(blank, text), "--name", "node1", says=says, status=4)
    check_no_node(blank)
    blank.run("node2", *join(blank, text))  # it was not used up


# -- leaving ----------------------------------------------------------------------------------------


def test_a_node_leaves_and_joins_again(blank: World) -> None:
    """Refused while it holds something; afterwards it is a stranger; then a node like before."""
    blank.run("node2", *join(blank, token(blank)))
    blank.wait_until_all_up()
    name = blank.filled("node2", mebibytes=1)
    before = blank.manifest("node2", name)
    says = ["node node2 holds", name, "pannier node drain node2"]
    blank.refused("node1", "pannier", "node", "rm", "node2", says=says, status=4)
    blank.move(name, "node1")
    blank.run("node1", "pannier", "node", "rm", "node2")
    assert [each["name"] for each in blank.json("node1", "node", "ls")] == ["node1"]
    stranger = blank.attempt("node2", *blank.docker_run(name, "--rm"), "true")
    assert stranger.status != 0
    assert "not accepted any more" in stranger.text or "join the node again" in stranger.text
    text = token(blank)
    says = ["this machine is node node2", "move /etc/pannier away"]
    blank.refused("node2", *join(blank, text), says=says, status=4)
    blank.sh("node2", "mkdir -p /root/old && mv /etc/pannier/* /root/old")
    blank.run("node2", *join(blank, text))
    blank.wait_until_all_up()
    assert json.loads(blank.run("node2", "pannier", "node", "ls", "-o", "json"))
    blank.move(name, "node2")
    assert blank.manifest("node2", name) == before


WATCH = """
{curl} --no-buffer -d '{{"create_request":{{"key":"AA==","range_end":"AA=="}}}}' https://{etcd}/v3/watch >/root/watched
"""


def test_a_removed_node_is_out_of_the_store_with_what_it_had_open(blank: World) -> None:
    """It keeps its keys: for the store and for other nodes."""
    blank.run("node2", *join(blank, token(blank)))
    blank.wait_until_all_up()
    blank.sh("node2", "rm -rf /root/kept; cp -r /etc/pannier /root/kept")
    etcd = f"{blank.lab.nodes[0].address}:2379"
    kept = "curl -sS --max-time 120 --cacert /root/kept/store/ca.crt --cert {0}/node.crt --key {0}/node.key"
    own, peers = kept.format("/root/kept/store"), kept.format("/root/kept")
    put = f"""-d '{{"key":"YQ=="}}' https://{etcd}/v3/kv/put"""
    blank.sh("node2", f"{own} {put}")
    assert blank.attempt("node2", "sh", "-c", f"{peers} {put}").status != 0
    watch = WATCH.format(curl=own, etcd=etcd)
    blank.run("node2", "systemd-run", "--quiet", "--unit", "watching", "sh", "-c", watch)
    story.wait_until("it watches", lambda: "created" in blank.run("node2", "cat", "/root/watched"))
    blank.run("node1", "pannier", "node", "rm", "node2")
    story.wait_until(
        "its watch is cut",
        lambda: blank.attempt("node2", "systemctl", "is-active", "watching").status != 0,
    )
    assert blank.attempt("node2", "sh", "-c", f"{own} {put}").status != 0
    assert blank.printed("node1", "status")["store_ok"]
    blank.sh("node2", "rm -rf /etc/pannier/*")
    blank.run("node2", *join(blank, token(blank)))
    blank.wait_until_all_up()
    assert blank.attempt("node2", "sh", "-c", f"{own} {put}").status != 0


def test_init_can_be_repeated_after_a_failure(blank: World) -> None:
    """The store did not answer; what was made by then is used."""
    nowhere = f"{blank.lab.nodes[1].address}:2379"
    blank.refused(
        "node2", *init("--pool", DEVICE, "--store", f"etcd://{nowhere}"),
        says=["no etcd endpoint gives an answer", nowhere], status=6,
    )  # fmt: skip
    blank.run("node2", *init("--pool", DEVICE))
    name = blank.create("node2")
    assert blank.container("node2", name, "echo", "fine") == "fine\n"


# -- a machine that was copied ----------------------------------------------------------------------

OUT_OF = """
cd /
tar -cSz etc/pannier var/lib/pannier/catalog.json var/lib/pannier/pool/images/$id/live-1/image | base64
"""
INTO = """
systemctl stop pannierd.socket pannierd.service
rm -r /etc/pannier/* /var/lib/pannier/*.json
cd /var/lib/pannier/pool/images
mkdir $id
btrfs -q subvolume create $id/live-1
chattr +C $id/live-1
base64 -d | tar -xSz -C /
systemctl start pannierd.socket pannierd.service
"""
DISABLE = """
systemctl disable --now pannierd-barrier.socket pannierd.socket pannierd.service
rm -f /run/docker/plugins/pannier.sock
"""


def copy_node1(world: World, volume: str) -> None:
    """Make node2 a copy of node1 with a volume's bytes. It boots by itself, and node1 does not notice."""
    world.run("node2", *init("--pool", DEVICE, "--store", "sqlite"))
    name = f"id={world.json('node1', 'volume', 'show', volume)['id']}"
    world.run("node2", "sh", "-euc", name + INTO, input=world.sh("node1", name + OUT_OF))
    world.wait_for_pannier("node2")


def test_a_copied_machine_serves_nothing_and_can_become_a_node_of_its_own(blank: World) -> None:
    name = blank.create("node1")
    writer = blank.writer("node1", name)
    copy_node1(blank, name)
    run = [*blank.docker_run(name, "--rm"), "cat", "/data/log"]
    served = blank.start(blank.attempt, "node2", *run)

    def told() -> list[str]:
        found = blank.json("node2", "doctor")
        return [
            one["remedy"] for one in found if "another machine has this node's name" in one["what"]
        ]

    (remedy,) = story.wait_until("it is told", told)
    assert "see 'A machine that was copied' in docs/operations" in remedy
    create = ["pannier", "volume", "create", blank.name()]
    blank.refused("node2", *create, says=["does nothing as node node1", "has that name"], status=6)
    outcome = served.result()
    assert outcome.status != 0
    assert "does nothing as node node1" in outcome.text
    before = blank.acknowledged("node1", writer)
    story.wait_until("the first one goes on", lambda: blank.has_more("node1", writer, before))
    assert blank.json("node1", "volume", "show", name)["epoch"] == 1
    blank.stop("node1", writer)

    blank.sh("node2", DISABLE + RESET)
    blank.run("node2", *join(blank, token(blank)))
    blank.wait_until_all_up()
    blank.move(name, "node2")
    check_sequence(blank.log("node2", name))

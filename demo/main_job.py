"""The main job: volumes that follow their containers, and a power cut. ``make demo QUICK=1`` plays it."""

from __future__ import annotations

import time

from demo import failover, image, postgres_image, story
from demo.timeline import Timeline, laboratory
from pannier.lab import Lab

MORAL = "Every volume followed its container, and nothing that was synced is lost."


def play(timeline: Timeline) -> None:
    """Play all of it.

    Raises:
        StoryError: something was not as it must be.
    """
    single_node(timeline)
    three_nodes(timeline)


def single_node(timeline: Timeline) -> None:
    timeline.chapter("One machine, no etcd")
    with laboratory("demo-one", timeline, nodes=1, store="sqlite") as lab:
        lab.build_busybox("localhost:5000/busybox:1")
        timeline.chapter("1. pannier init; docker run, twice")
        timeline.did("the note is there for the second container", lambda: story.one_node(lab))


def three_nodes(timeline: Timeline) -> None:
    timeline.chapter(
        "Three machines: systemd, Docker, Swarm, etcd, Pannier; disks that can lose power"
    )
    with laboratory("demo", timeline, nodes=3, release="mixed", disks="cuttable") as lab:
        image.load(lab)
        postgres_image.load(lab)
        timeline.say("[green]✓[/green] three managers; every node can run Pannier's volumes")
        moves(lab, timeline)
        power_cut(lab, timeline)


def moves(lab: Lab, timeline: Timeline) -> None:
    timeline.chapter("2. docker stack deploy; the only special words are `driver: pannier`")
    task = timeline.did("the service fills its home", lambda: story.deploy_stack(lab))
    before = timeline.did(
        "seeded from the image: owner 1000, mode 2750, times, xattrs; 3,000 files written",
        lambda: story.check_seed(lab, task),
    )

    timeline.chapter(f"3. {task.node} is drained")
    moved, seconds = story.drain(lab, task)
    timeline.say(f"[green]✓[/green] runs on {moved.node} after {seconds:.1f} s")
    check_same(lab, moved.node, before, timeline)

    target = next(n.name for n in lab.nodes if n.name not in (task.node, moved.node))
    timeline.chapter(f"4. pannier volume move {story.HOME} {target}, the service being pinned")
    last, done = story.move_pinned(lab, moved, target)
    timeline.say(
        f"[green]✓[/green] {done['sent_bytes'] / 2**20:.1f} MiB in {done['round']} rounds while it ran; "
        f"[bold]pause {done['pause_seconds']:.2f} s[/bold]; runs on {last.node}"
    )
    check_same(lab, last.node, before, timeline)

    timeline.chapter("5. docker-compose: up, stop, rm, up on another node")
    visits = story.compose_everywhere(lab)
    timeline.say(f"[green]✓[/green] v1 and v2: {len(visits)} notes kept, none copied by hand")


def power_cut(lab: Lab, timeline: Timeline) -> None:
    cast = failover.Cast(victim="node2", copy="node3", witness="node1")
    timeline.chapter(
        "6. docker volume create -d pannier -o copies=2: a ledger and a Postgres, on node2"
    )
    timeline.say("  [dim]docker swarm update --dispatcher-heartbeat 1s[/dim]")
    timeline.say(
        "  [dim]docker service create --restart-delay 0s "
        "--constraint node.labels.pannier.volume.NAME==copy ...[/dim]"
    )
    failover.watch_closely(lab, asked=cast.witness)
    scene = timeline.did(
        "every sync call in them returns when node3 has the data too",
        lambda: failover.set_the_scene(lab, cast),
    )
    loss = failover.lose_power(lab, scene)
    made = sum(loss.transactions.values())
    timeline.say(f"[green]✓[/green] {loss.lines} lines and {made} transactions were acknowledged")
    timeline.say(f"  a synced line of the ledger waited {loss.waits}")

    timeline.chapter("7. node2 loses power; its disks forget what was not flushed")
    after = failover.wait_for_both(lab, cast)
    for event in failover.timeline(lab, after, loss):
        timeline.say(f"  {event.seconds:+6.1f} s  {event.what}")
    waits = failover.wait_for_sync(lab, failover.LEDGER, on=after.ledger.node)
    timeline.say(f"  a synced line waits {waits}, while its other copy is away")
    kept = failover.check(lab, after, loss)
    timeline.say(
        f"[green]✓[/green] ledger: [bold]all {loss.lines} acknowledged lines[/bold], none twice; of the "
        f"drafts, never synced, the last {kept.window_seconds:.1f} s are lost"
    )
    timeline.say(
        f"[green]✓[/green] Postgres: [bold]all {made} acknowledged transactions[/bold], and "
        f"{kept.unanswered} whose answer was on its way; sums agree; pg_amcheck finds nothing"
    )

    timeline.chapter("8. node2 has power again")
    began = time.monotonic()
    strays = failover.come_back(lab, after)
    seconds = time.monotonic() - began
    timeline.say(
        f"[green]✓[/green] its copies are in sync again after {seconds:.1f} s, by themselves"
    )
    for stray in strays:
        timeline.say(f"  [dim]pannier doctor: {stray}[/dim]")


def check_same(lab: Lab, node: str, before: list[str], timeline: Timeline) -> None:
    now = story.without(story.manifest(lab, node, story.HOME), "log")
    gone, new = set(before) - set(now), set(now) - set(before)
    story.expect(not gone and not new, f"the tree differs: {sorted(gone)[:3]} {sorted(new)[:3]}")
    timeline.say(
        f"[green]✓[/green] {len(now)} entries: same bytes, owners, modes, times, links, xattrs"
    )

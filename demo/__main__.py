"""``python -m demo``: three real machines, one story, every byte checked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

from demo import image, story
from pannier.core.errors import PannierError
from pannier.lab import Lab

T = TypeVar("T")


class Timeline:
    """Prints what happens, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._began = time.monotonic()

    def say(self, text: str, *, style: str = "") -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"[dim]{seconds:6.1f} s[/dim]  {text}", style=style)

    def chapter(self, text: str) -> None:
        self._console.print()
        self.say(f"[bold]{text}[/bold]")

    def did(self, text: str, work: Callable[[], T]) -> T:
        result = work()
        self.say(f"[green]✓[/green] {text}")
        return result


@contextmanager
def laboratory(name: str, timeline: Timeline, **wish: object) -> Iterator[Lab]:
    """A lab that is gone afterwards, whatever happens."""
    lab = Lab(name, report=lambda text: timeline.say(f"  [dim]{text}[/dim]"))
    lab.down()
    try:
        lab.up(**wish)  # type: ignore[arg-type]
        yield lab
    finally:
        lab.down()


def three_nodes(timeline: Timeline) -> None:
    timeline.chapter("Three machines: systemd, Docker, Swarm, etcd, Pannier")
    with laboratory("demo", timeline, nodes=3, release="mixed") as lab:
        image.load(lab)
        timeline.say("[green]✓[/green] three managers; every node can run Pannier's volumes")

        timeline.chapter("1. docker stack deploy; the only special words are `driver: pannier`")
        task = timeline.did("the service fills its home", lambda: story.deploy_stack(lab))
        before = timeline.did(
            "seeded from the image: owner 1000, mode 2750, times, xattrs; 3,000 files written",
            lambda: story.check_seed(lab, task),
        )

        timeline.chapter(f"2. {task.node} is drained")
        moved, seconds = story.drain(lab, task)
        timeline.say(f"[green]✓[/green] runs on {moved.node} after {seconds:.1f} s")
        check_same(lab, moved.node, before, timeline)

        target = next(n.name for n in lab.nodes if n.name not in (task.node, moved.node))
        timeline.chapter(f"3. pannier volume move {story.HOME} {target}, the service being pinned")
        last, done = story.move_pinned(lab, moved, target)
        timeline.say(
            f"[green]✓[/green] {done['sent_bytes'] / 2**20:.1f} MiB in {done['round']} rounds while it ran; "
            f"[bold]pause {done['pause_seconds']:.2f} s[/bold]; runs on {last.node}"
        )
        check_same(lab, last.node, before, timeline)

        timeline.chapter("4. docker-compose: up, stop, rm, up on another node")
        visits = story.compose_everywhere(lab)
        timeline.say(f"[green]✓[/green] v1 and v2: {len(visits)} notes kept, none copied by hand")


def check_same(lab: Lab, node: str, before: list[str], timeline: Timeline) -> None:
    now = story.without(story.manifest(lab, node, story.HOME), "log")
    gone, new = set(before) - set(now), set(now) - set(before)
    story.expect(not gone and not new, f"the tree differs: {sorted(gone)[:3]} {sorted(new)[:3]}")
    timeline.say(
        f"[green]✓[/green] {len(now)} entries: same bytes, owners, modes, times, links, xattrs"
    )


def single_node(timeline: Timeline) -> None:
    timeline.chapter("5. One machine, no etcd: pannier init, docker run, twice")
    with laboratory("demo-one", timeline, nodes=1, store="sqlite") as lab:
        lab.build_busybox("localhost:5000/busybox:1")
        timeline.did("the note is there for the second container", lambda: story.one_node(lab))


def main() -> int:
    timeline = Timeline()
    try:
        three_nodes(timeline)
        single_node(timeline)
    except (story.StoryError, PannierError) as error:
        timeline.say(f"[red]✗ {error}[/red]")
        return 1
    timeline.chapter("[green]The volume followed its container every time.[/green]")
    return 0


sys.exit(main())

"""The main job, step by step: a volume follows its container, and every byte goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cluster_world import World
from demo import story
from demo.story import Task

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


class Stack:
    """The stack of the story, as it is now."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.task: Task = story.deploy_stack(lab)
        self.before = story.check_seed(lab, self.task)

    def check_same(self) -> None:
        """The tree is what it was, but for the log that the application goes on writing."""
        now = story.without(story.manifest(self.lab, self.task.node, story.HOME), "log")
        assert now == self.before


@pytest.fixture(scope="module")
def stack(three_lab: Lab) -> Iterator[Stack]:
    """The stack, deployed once: its steps follow each other."""
    yield Stack(three_lab)
    first = three_lab.nodes[0].name
    three_lab.run(first, ["docker", "stack", "rm", "story"])
    story.wait_until("the stack is gone", lambda: not _volume_users(three_lab, story.HOME))
    for name in (story.HOME, "notes"):
        three_lab.run(first, ["pannier", "volume", "rm", name], check=False)


def _volume_users(lab: Lab, name: str) -> Any:
    return story.volume(lab, name)["in_use_by"]


def test_a_stack_fills_its_volume_from_the_image(stack: Stack) -> None:
    """Owner, mode, times, links and attributes are as with Docker's own volumes."""
    assert len(stack.before) > 3000
    stack.check_same()


def test_f06_a_drained_node_loses_its_service_and_no_byte(stack: Stack) -> None:
    old = stack.task
    stack.task, _ = story.drain(stack.lab, old)
    assert stack.task.node != old.node
    stack.check_same()
    assert story.volume(stack.lab, story.HOME)["holder"] == stack.task.node


def test_a_pinned_service_moves_with_one_command(stack: Stack) -> None:
    """The bulk goes ahead while it runs; then its pin is changed."""
    names = [node.name for node in stack.lab.nodes]
    target = next(name for name in names if name != stack.task.node)
    stack.task, done = story.move_pinned(stack.lab, stack.task, target)
    assert stack.task.node == target
    assert done["sent_bytes"] > 0
    stack.check_same()


def test_the_stack_is_listed_and_its_history_told(stack: Stack) -> None:
    shown = story.volume(stack.lab, story.HOME)
    assert shown["holder"] == stack.task.node
    assert any("story_keeper" in user for user in shown["in_use_by"])
    told = story.output(
        stack.lab, stack.task.node, "pannier", "volume", "history", story.HOME
    ).splitlines()
    kinds = [line.split()[1] for line in told[1:]]
    assert kinds[0] == "volume.created"
    assert kinds.count("volume.moved") == shown["epoch"] - 1


def test_compose_finds_its_volume_on_every_node(three: World) -> None:
    """Both versions of compose, as they come with Debian 12 and 13."""
    visits = story.compose_everywhere(three.lab)
    assert len(visits) == len(three.nodes)

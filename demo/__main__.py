"""``python -m demo [--quick]``: real machines, one story, every byte checked. It ends with a power cut."""

from __future__ import annotations

import argparse
import sys

from demo import bare_to_jenkins, main_job
from demo.story import StoryError
from demo.timeline import Timeline
from pannier.core.errors import PannierError


def main() -> int:
    """Play the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main job only, without Ansible")
    story = main_job if parser.parse_args().quick else bare_to_jenkins
    timeline = Timeline()
    try:
        story.play(timeline)
    except (StoryError, PannierError) as error:
        timeline.say(f"[red]✗ {error}[/red]")
        return 1
    timeline.chapter(f"[green]{story.MORAL}[/green]")
    return 0


sys.exit(main())

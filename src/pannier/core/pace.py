"""How often the parts of a node look, how long they wait, and how long they keep trying.

One value for the whole node, so that a simulation plays with other times by replacing the value.
All times are in seconds. The lease's own times are in :class:`~pannier.core.lease.Terms`; time-outs of
one connection or protocol stay with the adapter that speaks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPace:
    """Custody of the local volumes, their disks, the lease and fencing."""

    starting: float = 60.0
    """How long an answered Mount counts as a use that /proc does not show yet. The engine may be
    copying the image's files or still be making the container. Afterwards /proc alone is believed,
    since Unmounts get lost when the engine or this daemon crashes."""
    end_tries: int = 50
    """How many times the users of a volume are killed before the rest is logged as left over."""
    end_pause: float = 0.1
    """Between two such times: a killed process needs some milliseconds to be gone."""
    adopt_pause: float = 5.0
    """Between two tries to put volumes in order after a start: the store or a disk may come late."""
    prove_look: float = 0.5
    """Between two looks for volumes that the present lease says nothing about yet."""
    disk_look: float = 0.5
    """Between two looks at the disks. A failed disk costs this time beyond the lease."""
    fence_look: float = 0.2
    """Between two looks at leases that are running out: a part of the margin of 1 s."""
    fence_calm: float = 1.0
    """The longest time between two looks while the lease is good: only new volumes are to be seen."""
    doubt: float = 20.0
    """How long containers stand still before they are ended. Longer than an election of the store's
    leader on a busy machine, and than a cable that was pulled by mistake. Who talks to the
    containers waits meanwhile, and should hear in the end that they are gone."""
    doubt_pause_limit: float = 3.0
    """The longest pause between two questions to the store while containers stand still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesPace:
    """Replication, sync calls that wait for it, and verification."""

    patience: float = 5.0
    """How long a sync call waits for a copy whose node is alive, before that copy leaves those in
    sync. Longer than a hiccup of a busy disk."""
    join_patience: float = 2.0
    """How long sync calls may be held up by a copy that wants to be in sync again."""
    lag_intervals: int = 10
    """A copy in sync may lag by this many of the volume's intervals ..."""
    lag: float = 10.0
    """... and by this time at least; an older one leaves those in sync."""
    sync_look: float = 0.5
    """Between two looks at whether copies still count, or count again."""
    retry: float = 1.0
    """Before a transfer that failed is tried again, the first time; then twice as long each time."""
    retry_limit: float = 30.0
    """The longest such pause: a copy that comes back is met within it."""
    absence: float = 900.0
    """After this time a copy on a node that is down is replaced: long enough for a reboot or a new
    cable."""
    reconcile: float = 2.0
    """Between two looks at which volumes are to be replicated, and to where."""
    hurry: float = 2.0
    """While a volume is about to move, the oldest that its newest generation may be."""
    tidy_intervals: int = 4
    """Old generations are looked for every so many of the volume's intervals ..."""
    tidy: float = 2.0
    """... and not more often than this: each look reads a directory."""
    verify_every: float = 7 * 24 * 3600.0
    """Each copy is read to the last byte this often, by the wall clock. A clock that jumps makes it
    early, or once late by as much."""
    verify_turn: float = 60.0
    """Between two looks for copies whose time has come."""
    verify_finish: float = 5.0
    """Between two tries to finish a copy whose damage could not be reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingPace:
    """Hand-over, takeover and promises."""

    interest: float = 15.0
    """A node that has not repeated its wish for a volume for this time has given up: its container is
    gone."""
    answer: float = 5.0
    """How long a node that asks for a volume waits for news before it is told how things stand."""
    other_copies: float = 0.25
    """Extra time for the other copies to receive the last generation, once the target has it."""
    small_round: float = 0.3
    """A round that took less leaves so little that the last one will be short too."""
    idle_round: float = 2.0
    """How often the rest is sent ahead while the end of use is waited for."""
    poll: float = 0.1
    """Between two looks at whether a volume is still in use: part of every planned pause."""
    near: float = 3.0
    """A target that lags no further than this has nearly everything: the rest is short."""
    tidy_after: float = 10.0
    """What a change of holder leaves behind is deleted after the container has followed. With a tree
    the kernel frees all its cached pages, some 0.2 s for each GiB, and a Mount would wait that long."""
    take_ask: float = 1.0
    """How long a node is waited for that is asked for its copy before a takeover."""
    recover_ask: float = 5.0
    """The same where a person recovers a volume: being complete counts more than being quick."""
    promise: float = 10.0
    """How long a peer promises not to take a volume over. Longer than a lease: it bridges an election
    of the store's leader."""
    promise_answer: float = 2.0
    """How long the answer to a request for a promise is waited for."""
    promise_ask: float = 1.0
    """Between two requests for promises while the store is away."""
    promise_look: float = 0.2
    """Between two looks at whether promises are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePace:
    """What the edges ask of the node, and its slow loops."""

    mount_budget: float = 95.0
    """How long a Mount may wait. Docker gives up at 120 s and the plugin answers by 100 s: the error must be
    out before."""
    mount_silence: float = 20.0
    """A holder that cannot be reached for this time ends the wait, so that Swarm may try elsewhere."""
    mount_retry: float = 0.5
    """Between two questions of a waiting Mount to the holder, or to a store without a leader."""
    mount_look: float = 0.1
    """Between two looks of a waiting Mount at whether its holder is gone."""
    listing: float = 3.0
    """How long a listing waits for another node's live facts before it goes without them."""
    engine: float = 1.0
    """How long a node waits for its engine when another one asks about it."""
    admission_answer: float = 0.2
    """How long a Mount waits for the engine's answer about its runtime when an earlier one is known."""
    admission_first: float = 2.0
    """The same where none is known yet."""
    admission_patience: float = 10.0
    """How long that answer is waited for in the background, and the pause between two tries."""
    free_space: float = 60.0
    """Between two reports of the pool's free space to the node's record."""
    leave_within: float = 10.0
    """How long a daemon that ends may take to bring everything to the copies: systemd waits for 20 s."""
    leave_doubt: float = 4.0
    """How long, at the end, containers that stand still may yet turn out to be allowed to go on."""
    leave_look: float = 0.2
    """Between two looks at that."""
    trash: float = 24 * 3600.0
    """How long a removed volume can be restored, counted while the daemon runs."""
    turn: float = 60.0
    """Between two turns of the slow loop that empties the trash."""
    drain: float = 5.0
    """How often a drained node looks for volumes that became idle: somebody waits for it to be empty."""
    swarm_look: float = 15.0
    """How often the engine is asked whether it is in a Swarm: it does not tell by itself."""
    memory: float = 5.0
    """How long Docker's questions wait for the store at start. Then memory alone answers."""
    start_retry: float = 5.0
    """Between two tries to open a pool, or to introduce the node: a disk or the store may come late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmPace:
    """Services that move, their labels, hooks and evacuation."""

    evacuation_turn: float = 0.5
    """Between two steps of an evacuation."""
    evacuation_shortest: float = 0.1
    """The shortest time between two looks, whatever is due: a clock may be a little early."""
    evacuation_retry: float = 1.0
    """After an error. A Swarm that lost its leader has a new one within some 15 s."""
    evacuation_look: float = 10.0
    """While a node is lost and nothing can be done about it now: nobody tells that Swarm has changed."""
    evacuation_idle: float = 60.0
    """With nothing to do. A change of any node's lease is heard at once."""
    evacuation_answer: float = 0.7
    """How long a node is waited for that is asked whether it works: part of every evacuation."""
    labels_turn: float = 3.0
    """The shortest time between two turns: each change of a node is a write to the Swarm's own store."""
    labels_check: float = 60.0
    """The longest: a person may have taken a label away."""
    labels_stale: float = 10.0
    """How long a label must have been wrong before it is taken away. Swarm ends the tasks that need
    it, and a copy that is out of sync for a moment need not be left."""
    hook_poll: float = 0.2
    """Between two looks at a hook that runs."""
    hook_retry: float = 2.0
    """Before a hook that could not be started is tried again. The engine may be starting, and a container
    that stops keeps it from answering about that one."""
    hook_notice: float = 20.0
    """Within this time the end of a stream is noticed on its far side."""
    move_poll: float = 0.1
    """Between two looks at a service that moves: part of every pause that is told."""
    move_rest: float = 30.0
    """How long the rest may take to be small again after the pre-move hook. Then it is as it is."""
    move_leader: float = 60.0
    """How long Swarm may be without a leader: one that was lost is missed for up to 50 s."""
    move_place: float = 30.0
    """How long Swarm may find no node for the new task."""
    move_untie: float = 30.0
    """How long the node's labels may take to follow the volumes."""
    move_volume: float = 86_400.0
    """How long a volume's own move waits for the container's end: longer than any move of a service."""
    move_again: float = 0.5
    """Between two tries to hear from a move that another manager leads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """All of it, by the room that uses it."""

    agent: AgentPace = field(default_factory=AgentPace)
    copies: CopiesPace = field(default_factory=CopiesPace)
    holding: HoldingPace = field(default_factory=HoldingPace)
    node: NodePace = field(default_factory=NodePace)
    swarm: SwarmPace = field(default_factory=SwarmPace)

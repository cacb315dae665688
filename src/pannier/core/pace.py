"""How often the parts of a node look, how long they wait, and how long they keep trying.

One value for the whole node, so that a simulation can use other times by replacing the value.
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
    """How many times the users of a volume are killed before those that remain are logged."""
    end_pause: float = 0.1
    """Between two such times: a killed process needs some milliseconds to be gone."""
    end_patience: float = 1.0
    """How long they wait for the volume to be unmounted: that takes milliseconds, where the disk does not hang."""
    linger: float = 30.0
    """How long a volume that nobody uses stays attached: a container that is restarted finds it so."""
    idle_look: float = 5.0
    """Between two looks for such volumes."""
    busy_look: float = 300.0
    """The same for a volume that the engine says it uses: each look is a walk through /proc, and there may be
    hundreds of them. Not longer, since the engine's word gets lost when it crashes."""
    room_look: float = 0.1
    """Between two looks at a pool with little room: what a disk takes in meanwhile must be kept free."""
    room_calm: float = 2.0
    """The longest time between two looks at a pool with much room."""
    room_engine: float = 1.0
    """How long the engine has to say which containers run, before that."""
    room_users: float = 2.0
    """Between two searches for users of the volumes of a full pool: each costs a walk through /proc."""
    trim: float = 24 * 3600.0
    """How often what files no longer need is given back to the pool, counted while the daemon runs."""
    adopt_pause: float = 5.0
    """Between two tries to put volumes in order after a start: the store or a disk may come late."""
    prove_look: float = 0.5
    """Between two looks for volumes that the present lease says nothing about yet."""
    disk_look: float = 0.5
    """Between two looks at the disks. A failed disk costs this time beyond the lease."""
    disk_ask: float = 5.0
    """A disk that has completed no write for so long is asked for one: seldom enough for one that nobody uses."""
    disk_hang: float = 30.0
    """A disk that has completed no write for so long, although it was asked for one, is given up. As long as the kernel
    gives a SCSI disk or an NVMe device for a request before it resets it; most come back then. One that crawls completes
    its largest request earlier: 1.25 MiB take 10 s at 125 kB/s."""
    fence_look: float = 0.2
    """Between two looks at leases that are running out: a fifth of the margin of 1 s."""
    fence_calm: float = 1.0
    """The longest time between two looks while the lease is good: only new volumes can matter then."""
    doubt: float = 20.0
    """How long containers are frozen before they are ended. Longer than an election of the store's
    leader on a busy machine takes, and than a cable stays out that was pulled by mistake. Not longer,
    since clients of the containers wait meanwhile, and should see in the end that they are gone."""
    doubt_pause_limit: float = 3.0
    """The longest pause between two searches for users of a volume while containers are frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesPace:
    """Replication, sync calls that wait for it, and verification."""

    patience: float = 5.0
    """How long a sync call waits for a copy whose node is alive before that copy leaves those in sync.
    Longer than a busy disk may stall."""
    hold: float = 0.25
    """How long the local sync of a group may keep others from making a generation, or from giving the volume away: those may be what
    a disk or a frozen file system waits for."""
    join_patience: float = 2.0
    """How long sync calls may be held up by a copy that wants to be in sync again."""
    lag_intervals: int = 10
    """A copy in sync may lag by this many of the volume's intervals ..."""
    lag: float = 10.0
    """... and by this time at least; an older one leaves those in sync."""
    sync_look: float = 0.5
    """Between two looks at whether copies still count, or count again."""
    own_copies: float = 1.0
    """Between two looks at whether this node's copies lack something: memory knows it, but after a start."""
    generation: float = 10.0
    """Between two generations of a volume whose records tell what is written: a takeover puts the records since
    then on top of it, and a copy's journal keeps them."""
    line_bytes: int = 32 << 20
    """So many bytes of records since the newest generation bring the next one at once: a takeover reads them in
    some tenths of a second, and the journals of copies have room for several volumes."""
    most_waiting: int = 64
    """So many records on their way to a copy: one that has more to wait for gets a generation instead."""
    most_waiting_bytes: int = 32 << 20
    """And so many bytes of them: they are in memory, and a copy's journal keeps them."""
    full_again: float = 10.0
    """Before a copy gets records again whose journal others fill, or which has refused the first record on each of the last
    generations: each try costs a sync call a round trip beside the generation, and room comes there with the next
    generations of other volumes."""
    say: float = 60.0
    """Between two lines of the log about the same trouble with a volume's records: each sync call may meet it anew."""
    retry: float = 1.0
    """Before a failed transfer is tried again, the first time; twice as long each time after that."""
    retry_limit: float = 30.0
    """The longest such pause."""
    refused_tries: int = 3
    """After so many differences to one base that a copy refused, it is sent everything: more than a bit that flips on the
    way or a part that went stale needs, and few, since the copy lacks what is written meanwhile."""
    broken_tries: int = 20
    """The same for differences of which no more arrives and no answer comes, although the copy's node accepts them: some
    minutes, since a bad network would break a larger transfer, too."""
    refused_limit: float = 900.0
    """The longest pause after something that was refused: each try may send the whole volume. A person who has removed the
    reason waits no longer than this; the pause ends as well when the copy's node comes back, and when the holder's does."""
    quarantine_look: float = 15.0
    """Between two looks at copies that their node can neither tidy up nor read."""
    quarantine_lasts: float = 60.0
    """Such a copy is made anew after this time: longer than what passes by itself, as a mount that somebody made in it, and
    short, since the volume has one copy less meanwhile."""
    absence: float = 900.0
    """After this time a copy on a node that is down is replaced: long enough for a reboot or a new
    cable."""
    snapshots: float = 30.0
    """Between two looks at what copies lack of a volume's snapshots. A new snapshot is looked for at once."""
    snapshots_pause: float = 0.1
    """The shortest time between two such looks: what a copy lacks by what this node remembers, it may not lack by the store."""
    snapshots_again: float = 600.0
    """After so long a copy that has all snapshots is asked again: it may have been made anew."""
    catch_ups: int = 2
    """How many copies of a node that was away are brought up to date at once: more would share its disk and
    be complete later; with one, a large copy would keep all the others waiting."""
    catch_up_rests: float = 9.0
    """While sync calls are made, nobody catches up for this many times as long as the one before took: so it takes a tenth of what
    they share. Two hundred small copies were then back in 42 s instead of 17, and a Postgres beside them had 0.96 of its transactions instead of
    an eighth."""
    catch_up_rest: float = 2.0
    """The longest such rest: a large copy takes long, and its rate can be set."""
    catch_up_calm: float = 1.0
    """So long after the last sync call nobody rests any more."""
    reconcile: float = 2.0
    """Between two looks at which volumes are to be replicated, and to where."""
    hurry: float = 2.0
    """While a volume is about to move, the oldest that its newest generation may be."""
    tidy_intervals: int = 4
    """Old generations are looked for once in this many of the volume's intervals ..."""
    tidy: float = 2.0
    """... and not more often than this: each look reads a directory."""
    verify_every: float = 7 * 24 * 3600.0
    """Each copy is read to the last byte this often, by the wall clock. A jump of the clock makes one
    reading earlier, or later by as much."""
    verify_turn: float = 60.0
    """Between two looks for copies that are due."""
    mend: float = 10.0
    """How long a damaged copy waits for the right bytes of its blocks before it is made anew as a whole. A takeover
    by it waits as well, and so may what its holder sends."""
    verify_finish: float = 5.0
    """Between two tries to finish a copy whose damage could not be reported, or to tell why a copy is sent anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingPace:
    """Hand-over, takeover and promises."""

    interest: float = 15.0
    """A node that asks for a volume repeats the request. After this time without a repetition it has
    given up: its container is gone."""
    answer: float = 5.0
    """How long a request for a volume waits for the end of the hand-over before it is answered."""
    other_copies: float = 0.25
    """Extra time for the other copies to receive the last generation, once the target has it."""
    small_round: float = 0.3
    """After a round that took less than this, so little is left that the last one is short, too."""
    idle_round: float = 2.0
    """Between two rounds that are sent ahead while the volume is still in use."""
    poll: float = 0.1
    """Between two looks at whether a volume is still in use: part of every planned pause."""
    near: float = 3.0
    """A target that lags by less than this has nearly everything: the last transfer is short."""
    tidy_after: float = 10.0
    """How long after a change of holder the former holder's data is deleted: once the container has
    followed. When a tree is deleted, the kernel frees its cached pages, which takes some 0.2 s for each
    GiB, and a Mount would wait that long."""
    take_ask: float = 1.0
    """How long another node has to answer what copy it has, before a takeover."""
    recover_ask: float = 5.0
    """The same where a person recovers a volume: being complete counts more than being quick."""
    abdicate: float = 1.0
    """Between two attempts to give a volume to the copy that has what this node lacks: it may lack something, too, until a
    person has decided."""
    put_back: float = 0.5
    """Between two looks at volumes of which the store seems to know less than the nodes: each asks it."""
    promise: float = 10.0
    """How long a peer promises not to take a volume over. Longer than a lease, to bridge an election of
    the store's leader."""
    promise_answer: float = 2.0
    """How long a peer has to answer a request for a promise."""
    promise_ask: float = 1.0
    """Between two requests for promises while the store is away."""
    promise_look: float = 0.2
    """Between two looks at whether promises are needed."""
    snapshot: float = 60.0
    """How long the making of a snapshot waits for the copies in sync. They get it all the same."""
    snapshot_look: float = 0.02
    """Between two looks at whether they have it: somebody waits for the command, and they have it soon."""
    take_out_look: float = 0.5
    """Between two lines on how much of a file was copied out of a volume: somebody looks at them."""
    conversion_look: float = 0.5
    """Between two looks of a conversion at who uses the volume, at the room in the pool, and at what it has copied."""
    snapshots_look: float = 60.0
    """Between two looks for snapshots whose time is over."""
    snapshot_grace: float = 3600.0
    """So long a snapshot stays although its time is over, or its schedule does not keep it any more: a clock that was wrong at a
    start, or a mistake in a schedule, is put right by then."""
    clone: float = 5.0
    """How long the making of a clone of what a volume is now waits for the copies in sync: the second or two in which they get
    what was just written. One that lacks it then is sent all of the clone."""
    clone_look: float = 0.02
    """Between two looks at whether they have it: somebody waits for the command, and they have it soon."""
    unborn_look: float = 60.0
    """Between two looks for what was begun of clones that never got a record: it only takes room."""
    still: float = 10.0
    """How long a volume stands still at most for a snapshot with others: far more than all generations take on disks with little
    to do, and less than programs and health checks wait. After it, the holder lets it go on whoever leads, and no snapshot is
    made. Also how long each volume's lock is waited for before that."""
    together: float = 3600.0
    """How long a holder whose hooks have run waits for those of the others."""
    naming: float = 30.0
    """For how long after it has made its own a holder gives all generations their names: a change of the store's leader takes
    some seconds."""
    kept: float = 120.0
    """How long each holder keeps its generations for their names: longer than :attr:`naming`, and all that can lie between two
    holders, so that nobody names one that may be gone."""
    settle_look: float = 1.0
    """Between two tries to find out whether generations got their names: each writes their records anew."""
    hook_turn: float = 60.0
    """How long a snapshot waits for the hooks of another one in the same container: two that are due at the same minute both
    come about, and two services that wait for each other do not do so for ever."""
    hook_retry: float = 2.0
    """Before a post-snapshot hook that could not be started is tried again: the engine may be starting. Twice as long each time,
    up to a minute."""
    hook_tries: int = 5
    """After so many tries the command ends without it, and says so. It is tried on."""
    hook_give_up: float = 24 * 3600.0
    """So long it is tried, while the container runs: a full pool, whose containers stand still, is given room by then."""
    schedules_look: float = 30.0
    """Between two looks at what is due by schedules: the shortest slot is an hour. Each reads the policies in the store."""
    schedules_at_once: int = 4
    """Of so many volumes at once a snapshot is made when an hour begins: each waits for its copies, and all disks have others to
    serve."""
    schedule_patience: float = 300.0
    """How long the making of one may take, hooks and copies included: other volumes wait for their turn."""
    schedule_doubt: float = 90.0
    """After so long doctor tells that a snapshot cannot be made: two tries have failed, as none does while a volume moves."""
    key_look: float = 60.0
    """Between two looks at whether this node has the keys that encrypt secrets and volumes: each reads one key of the store."""
    key_retry: float = 1.0
    """The same where it lacks one: right after a boot volumes wait for it, and the nodes that have it may come up meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePace:
    """Requests of Docker, users and other nodes, and the node's slow loops."""

    mount_budget: float = 95.0
    """How long a Mount may wait. The plugin answers by 100 s, and Docker gives up at 120 s: the error must
    come before."""
    mount_silence: float = 20.0
    """A Mount gives up if the holder cannot be reached for this time, so that Swarm may try elsewhere."""
    mount_retry: float = 0.5
    """Between two questions of a waiting Mount to the holder, or to a store without a leader."""
    mount_look: float = 0.1
    """Between two looks of a waiting Mount at whether its holder is gone."""
    usage_look: float = 300.0
    """Between two looks for volumes of which there is no sample of this hour: a daemon that was off samples soon after its start."""
    import_look: float = 0.5
    """Between two looks of an import at the room in the pool, at who uses its source, and at what it has copied."""
    import_ends: float = 30.0
    """How long the tasks of a service that did not come up with its new volume may take to end: Docker's own patience is 10 s."""
    import_left: float = 10.0
    """Between two tries to put away imports that did not end: their pool, the store or the Swarm may come late."""
    listing: float = 3.0
    """How long a listing waits for another node's live facts before it leaves them out."""
    engine: float = 1.0
    """How long a node waits for its engine when another node asks about the engine."""
    admission_answer: float = 0.2
    """How long a Mount waits for the engine's answer about its runtime when an earlier one is known."""
    admission_first: float = 2.0
    """The same where none is known yet."""
    admission_patience: float = 10.0
    """How long the background task waits for that answer, and its pause between two tries."""
    free_space: float = 60.0
    """Between two updates of the free space in the node's record."""
    unheld_look: float = 5.0
    """Between two looks for users whose sync calls nobody holds; one that two looks in a row find is reported."""
    unheld_at_once: int = 4
    """So many volumes are looked at each time beside those just mounted: each is a walk through /proc."""
    twins_look: float = 10.0
    """Between two looks for local volumes of Docker's that hide ours: a service may be waiting for their end."""
    leave_within: float = 10.0
    """How long a daemon that ends may take to bring everything to the copies: systemd waits for 20 s."""
    leave_doubt: float = 4.0
    """How long a daemon that ends waits for frozen containers to be allowed to go on."""
    leave_look: float = 0.2
    """Between two looks at whether any container is still frozen."""
    trash: float = 24 * 3600.0
    """How long a removed volume can be restored, counted while the daemon runs."""
    history: float = 7 * 24 * 3600.0
    """How long `volume history` and `events` tell, at least, how a volume left the trash for ever: somebody who looks after a
    holiday week still finds it. Its mark stays until then, so it bounds how many there are. By the wall clock."""
    token_history: float = 24 * 3600.0
    """How long a join token that has expired is told from one that never was."""
    removals: float = 20.0
    """Between two questions to another node which nodes were removed: one that missed a removal knows it within a minute."""
    removals_age: float = 3600.0
    """Between two notes of how old removals are: they count for years, and each is a write."""
    removals_answer: float = 5.0
    """How long another node has to answer that. Also how long a member of etcd waits for others that are just being
    started again: one that is down for longer is waited for in vain."""
    removals_look: float = 0.2
    """Between two looks at whether they serve."""
    removals_store: float = 30.0
    """How long the store may take to answer again, once its members were started again: some elections."""
    removals_turn: float = 10.0
    """A member that learned of a removal only by asking leaves so much time to whoever removes the node, and to each member
    before it, to start theirs again."""
    certificate_look: float = 60.0
    """Between two looks at the own certificate: somebody may wait who has replaced one that had ended."""
    certificate_retry: float = 3600.0
    """Between two questions for a renewed certificate, also across starts of the daemon: the present one counts for months."""
    certificate_retry_ended: float = 60.0
    """The same once it has ended: nothing works until then, and one request a minute from each node is no load."""
    certificate_members: float = 3600.0
    """How long doctor goes by what the store's members showed: each look is a handshake that etcd notes in its log."""
    forget: float = 600.0
    """Between two looks at what nobody needs any more: nothing waits for it, and each reads all marks of purged volumes."""
    forget_at_once: int = 500
    """So many marks are changed in one look at most: each is a write to the store, and all nodes do the same."""
    turn: float = 60.0
    """Between two turns of the slow loop that empties the trash."""
    free_look: float = 0.2
    """Between two looks at a pool that is short of room: a disk fills what is left in about this time."""
    free_again: float = 5.0
    """Between two looks at what can be freed where nothing was: each asks the disk about every volume. Also between two
    looks at how much the trash takes."""
    free_wait: float = 20.0
    """How long Docker's Create or Mount waits for the room that something still gives: longer than the kernel takes to free some
    volumes, and far shorter than Docker's patience."""
    drain: float = 5.0
    """Between two looks of a drained node for idle volumes: somebody waits for the node to be empty."""
    swarm_look: float = 15.0
    """How often the engine is asked whether it is in a Swarm: it does not report that by itself."""
    containers_look: float = 15.0
    """Between two looks at what containers ask of volumes: somebody has just started one. It costs a call for each that has a
    volume."""
    memory: float = 5.0
    """How long requests wait for the store and for the pool at start. Then Docker's are answered from
    memory, and others are told what is missing."""
    start_retry: float = 5.0
    """Between two tries to open a pool, or to write the node's record: disk or store may come late."""
    introduction_lease: float = 15.0
    """How long a node that has started waits for its lease before it takes back that it stops: with an earlier boot's
    lease about 5 s. One that gets none, since its disk failed, counts as lost then."""
    introduction_look: float = 0.1
    """Between two looks at whether it has it."""
    key_look: float = 60.0
    """Between two looks for keys of this node's volumes that a rotation has not come to: each reads one key of the store."""


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
    """While nothing can be done about a lost node, or by a node that is no manager: this may change
    without our hearing of it."""
    evacuation_idle: float = 60.0
    """With nothing to do. A change of any node's lease is heard at once."""
    evacuation_answer: float = 0.7
    """How long a lost node has to answer whether it works: part of every evacuation."""
    labels_turn: float = 3.0
    """The shortest time between two turns: each change of a node is a write to the Swarm's own store."""
    labels_check: float = 60.0
    """The longest time between two turns: a person may have removed a label."""
    labels_stale: float = 10.0
    """How long a label must have been wrong before it is removed. Swarm then ends the tasks that need it,
    and a copy may be out of sync only for a moment."""
    options_look: float = 15.0
    """Between two looks at whether services ask for a volume with other options than it has. A service that is
    deployed is looked at at once; this is for what comes about otherwise, such as a copy that is in sync by now."""
    hook_poll: float = 0.2
    """Between two looks at a hook that runs."""
    hook_retry: float = 2.0
    """Before a hook that could not be started is tried again. The engine may be starting, and a container
    that stops keeps it from answering about that one."""
    hook_notice: float = 20.0
    """How long a new move waits until an earlier one that was given up is noticed and undone."""
    move_poll: float = 0.1
    """Between two looks at a service that moves: part of every pause that is reported."""
    move_rest: float = 30.0
    """How long to wait after the pre-move hook until little is left to send. Then the move goes on anyway."""
    move_leader: float = 60.0
    """How long Swarm may be without a leader: replacing a lost one takes up to 50 s."""
    move_place: float = 30.0
    """How long Swarm may find no node for the new task."""
    move_untie: float = 30.0
    """How long the node's labels may take to follow the volumes."""
    move_volume: float = 86_400.0
    """How long a volume's own move waits for the container's end: longer than any move of a service."""
    move_again: float = 0.5
    """Between two tries to follow a move that another manager leads."""
    stop: float = 300.0
    """How long a service that is stopped may take to end: databases ask for minutes of grace."""
    stop_again: float = 300.0
    """For so long after its start a daemon asks its engine, where that says that it is no manager, for services that were left
    stopped: it may be starting as well."""
    stop_rest: float = 10.0
    """For so long after its last task has ended, a volume that is still in use is asked again: the engine unmounts it then."""
    switch_settled: float = 5.0
    """So long a task has to run until a service counts as up with its new volume: a program that cannot use its files mostly
    ends within a second or two."""
    switch_starts: float = 300.0
    """How long a service has for that: an image may have to be pulled, and a health check takes its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPace:
    """Backups off-site."""

    look: float = 60.0
    """Between two looks for volumes whose backup is due: each reads a key of the store for each volume that has a plan."""
    retry: float = 3600.0
    """Between two tries of one that failed. Each may read and send much; a target that is away is mostly so for longer."""
    drill_retry: float = 24 * 3600.0
    """The same for a restore drill by schedule. Each reads all of a backup."""
    check: float = 3600.0
    """How long the check of a restore drill may take: a database may read its log first."""
    answer: float = 60.0
    """How long a target may take for what is short: some KB. S3 far away and a loaded machine take a few seconds."""
    lock: float = 3600.0
    """How long a command that may take long waits for others that have locked the repository: uploads and prunes of other nodes."""
    lock_look: float = 15.0
    """Between two looks whether it is free again."""
    work: float = 24 * 3600.0
    """How long reading or writing all of it may take: a day, in which 8.6 TB go at 100 MB/s. A target that hangs ends so."""
    snapshot: float = 48 * 3600.0
    """For how long a snapshot is kept from which a backup is read. It goes at once; this is for what power failures leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """All of it, by the package that uses it."""

    agent: AgentPace = field(default_factory=AgentPace)
    copies: CopiesPace = field(default_factory=CopiesPace)
    holding: HoldingPace = field(default_factory=HoldingPace)
    node: NodePace = field(default_factory=NodePace)
    swarm: SwarmPace = field(default_factory=SwarmPace)
    backups: BackupPace = field(default_factory=BackupPace)

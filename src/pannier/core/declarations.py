"""What services declare of a volume that is there: what of it is taken over by itself, and what is left to a person.

Docker asks for the creation of a volume only if there is none of that name, so a declaration that was changed
reaches nobody but who reads the service. It is taken over where the volume then keeps and promises at least what it
did. All else stays, and is told.

- A declaration is taken over once. What was declared last is in the volume's record, so what a person sets
  afterwards stays until a declaration changes.
- What services declare differently is not taken over at all.
- An option that nobody declares stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pannier.core.conversion import converted, needs_copy
from pannier.core.errors import Conflict, InvalidInput
from pannier.core.options import FROM, OPTIONS, asked_of, other_origin, shown_value, value_of
from pannier.core.schedules import Schedule
from pannier.core.volume import Declared, Durability, Volume, VolumeSpec

_STAYS = "it stays as it was created"
_PROMISES = (Durability.NONE, Durability.INTERVAL, Durability.FSYNC)
"""From the least to the most."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What somebody says of a volume.

    Attributes:
        who: "service web".
        options: as they were typed.
        only_told: why none of it is taken over; empty where that is decided option by option.
    """

    who: str
    options: Mapping[str, str]
    only_told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What there is for a volume's copies.

    Attributes:
        nodes: how many could keep one.
        in_sync: how many copies are in sync, the holder's included.
    """

    nodes: int
    in_sync: int


@dataclass(frozen=True, slots=True)
class Left:
    """What somebody asks for and does not get: "size is none, not 1G (it stays as it was created)"."""

    who: str
    what: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a volume is to be.

    Attributes:
        spec: with all that is taken over.
        declared: what was declared last, by option.
        taken: what changes: "copies is 2, was 1".
        by: who asked for that: "by service web"; empty where nothing changes.
        left: what is asked for and stays, in the order of the declarations.
    """

    spec: VolumeSpec
    declared: Mapping[str, Declared]
    taken: tuple[str, ...]
    by: str
    left: tuple[Left, ...] = ()


@dataclass(frozen=True, slots=True)
class _Obstacle:
    """Why an option is not taken over.

    Attributes:
        due: it is, once the reason is gone.
        for_people: a person may say so all the same.
        remedy: what to do instead; empty for what is said of all options.
    """

    why: str
    due: bool = False
    for_people: bool = False
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Reading:
    """A declaration that could be read: ``spec`` is the volume's with its options."""

    declaration: Declaration
    spec: VolumeSpec

    def names(self, option: str) -> bool:
        return option in self.declaration.options


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of one option: the spec after it, what is remembered, and why who differs from it is left."""

    spec: VolumeSpec
    declared: Declared | None
    why: str = ""


def settle(volume: Volume, declarations: Sequence[Declaration], means: Means) -> Settlement:
    """Decide what of the declarations is taken over.

    Args:
        declarations: all that there are at present: only here it is seen that two contradict each other.
    """
    asked, left = _readable(volume.spec, declarations)
    spec, declared, by = volume.spec, dict(volume.declared), dict[str, None]()
    for name in (option.name for option in OPTIONS):
        naming = [each for each in asked if each.names(name)]
        counting = [each for each in naming if not each.declaration.only_told]
        verdict = _verdict(name, counting, spec, declared.get(name), means)
        if verdict.declared is not None:
            declared[name] = verdict.declared
        if verdict.spec != spec:
            spec = verdict.spec
            by.update(dict.fromkeys(each.declaration.who for each in counting))
        left += [
            _left(each, name, spec, each.declaration.only_told or verdict.why)
            for each in naming
            if value_of(each.spec, name) != value_of(spec, name)
        ]
    left += [
        Left(each.declaration.who, f"{what} ({_STAYS})")
        for each in asked
        for what in other_origin(volume, each.declaration.options)
    ]
    return Settlement(
        spec, declared, changes(volume.spec, spec), _by(by), tuple(dict.fromkeys(left))
    )


def settle_for(by: str, volume: Volume, options: Mapping[str, str], means: Means) -> Settlement:
    """What a person sets. It stays until a declaration changes.

    Args:
        by: who that is: "by anna".

    Raises:
        InvalidInput: an option cannot be read. Conflict: it cannot be changed, or not now; NeedsCopy: not in place.
    """
    spec, declared = volume.spec, dict(volume.declared)
    if FROM.name in options:
        raise Conflict(
            f"{FROM.name} says how a volume is made, and volume {volume.name} is there",
            remedy="make another one: pannier volume clone",
        )
    if (wanted := converted(volume, options)) is not None:
        raise needs_copy(volume, changes(spec, wanted))
    asked = _Reading(Declaration(by, options), asked_of(spec, options))
    for name in (option.name for option in OPTIONS if asked.names(option.name)):
        if name in declared:
            declared[name] = replace(declared[name], due=False)
        if value_of(asked.spec, name) == value_of(spec, name):
            continue
        rule = _RULES.get(name)
        obstacle = rule(spec, _with(name, spec, [asked]), means) if rule else _Obstacle(_STAYS)
        if obstacle is not None and not obstacle.for_people:
            raise Conflict(
                f"{name} of volume {volume.name} is {shown_value(spec, name)} and cannot be {options[name]}: "
                f"{obstacle.why}",
                remedy=obstacle.remedy
                or (
                    "try again when that has changed"
                    if obstacle.due
                    else "leave it, or create a volume with another name and copy what is in it"
                ),
            )
        spec = _with(name, spec, [asked])
    taken = changes(volume.spec, spec)
    return Settlement(spec, declared, taken, by if taken else "")


def _by(who: Collection[str]) -> str:
    return f"by {', '.join(who)}" if who else ""


def changes(before: VolumeSpec, after: VolumeSpec) -> tuple[str, ...]:
    """What differs, in words for people: "copies is 2, was 1"."""
    return tuple(
        f"{option.name} is {shown_value(after, option.name)}, was {shown_value(before, option.name)}"
        for option in OPTIONS
        if value_of(before, option.name) != value_of(after, option.name)
    )


def _readable(
    spec: VolumeSpec, declarations: Sequence[Declaration]
) -> tuple[list[_Reading], list[Left]]:
    """Those that can be read, and why the others cannot. Of one that cannot be read nothing is taken over."""
    asked, left = list[_Reading](), list[Left]()
    for each in declarations:
        try:
            asked.append(_Reading(each, asked_of(spec, each.options)))
        except InvalidInput as error:
            left.append(Left(each.who, error.message))
    return asked, left


def _left(asked: _Reading, name: str, spec: VolumeSpec, why: str) -> Left:
    declaration = asked.declaration
    what = f"{name} is {shown_value(spec, name)}, not {declaration.options[name]} ({why})"
    return Left(declaration.who, what)


def _verdict(
    name: str, asked: Sequence[_Reading], spec: VolumeSpec, last: Declared | None, means: Means
) -> _Verdict:
    if not asked:
        return _Verdict(spec, last)
    first = asked[0]
    if any(value_of(each.spec, name) != value_of(first.spec, name) for each in asked):
        who = ", ".join(each.declaration.who for each in asked)
        return _Verdict(spec, last, f"{who} ask for different values")
    rule = _RULES.get(name)
    if rule is None:
        return _Verdict(spec, last, _STAYS)
    text, wanted = first.declaration.options[name], _with(name, spec, asked)
    if value_of(wanted, name) == value_of(spec, name):
        return _Verdict(spec, Declared(text))
    new = last is None or last.text != text or last.due
    if obstacle := rule(spec, wanted, means):
        return _Verdict(spec, Declared(text, due=obstacle.due and new), obstacle.why)
    if not new:
        return _Verdict(spec, last, "it was set otherwise since")
    return _Verdict(wanted, Declared(text))


def _with(name: str, spec: VolumeSpec, asked: Sequence[_Reading]) -> VolumeSpec:
    """``spec`` with the value of one option; a second copy comes with what is promised of it."""
    if name != "copies" or spec.durability is not Durability.NONE:
        return replace(spec, **{name: getattr(asked[0].spec, name)})
    said = {each.spec.durability for each in asked if each.names("durability")}
    durability = said.pop() if len(said) == 1 else Durability.FSYNC
    return replace(spec, copies=asked[0].spec.copies, durability=durability)


# -- what is taken over --------------------------------------------------------------------------------


_SMALLER = (
    "take it out and in again: pannier volume export NAME --to dir:DIRECTORY, and then "
    "pannier volume import ANOTHER --from dir:DIRECTORY -o size=SIZE"
)


def _size(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    if now.layout != "image":
        return _Obstacle(_STAYS)
    if now.size is None:
        return _Obstacle("it is as large as its pool, and a volume never shrinks", remedy=_SMALLER)
    if wanted.size is not None and wanted.size < now.size:
        return _Obstacle("a volume never shrinks", remedy=_SMALLER)
    return _Obstacle("only a person changes that", for_people=True)


def _copies(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    if wanted.copies < now.copies:
        return _Obstacle("copies are never given up by themselves")
    if now.driver == "directory":
        return _Obstacle("the directory driver keeps one copy")
    if wanted.durability is Durability.NONE:
        return _Obstacle("with durability=none they would never be up to date")
    if wanted.copies > means.nodes:
        return _Obstacle(f"{means.nodes} nodes could keep one now", due=True)
    return None


def _durability(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    if _PROMISES.index(wanted.durability) < _PROMISES.index(now.durability):
        some = wanted.durability is not Durability.NONE and now.min_copies == 1
        return _Obstacle("less is never promised by itself", for_people=some)
    if now.copies == 1:
        return _Obstacle("it needs a second copy", due=True)
    return None


def _interval(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    return _Obstacle("it needs a second copy", due=True) if now.copies == 1 else None


def _min_copies(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    if wanted.min_copies < now.min_copies:
        return _Obstacle("less is never promised by itself", for_people=True)
    if now.durability is not Durability.FSYNC:
        return _Obstacle("it needs durability=fsync", due=True)
    if wanted.min_copies > min(now.copies, means.in_sync):
        return _Obstacle(f"{means.in_sync} copies are in sync now", due=True)
    return None


def _unheld_writes(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    if now.durability is not Durability.FSYNC:
        return _Obstacle("it needs durability=fsync", due=True)
    return _Obstacle("programs may fail by it, or lose what was promised", for_people=True)


def _labels(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    return None


def _backup(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    if (wanted.backup or wanted.drill) and now.driver != "image":
        return _Obstacle("backups are made of volumes with layout=image only")
    return None


_ANEW = (
    "import its files into a new volume: pannier volume export NAME --to dir:DIRECTORY, and then "
    "pannier volume import ANOTHER --from dir:DIRECTORY -o encrypted={wanted}"
)


def _encrypted(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    anew = _ANEW.format(wanted=str(wanted.encrypted).lower())
    return _Obstacle("what is on the disks stays encrypted or not", remedy=anew)


def _protected(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    return None if wanted.protected else _Obstacle("only a person ends that", for_people=True)


def _snapshots(now: VolumeSpec, wanted: VolumeSpec, means: Means) -> _Obstacle | None:
    if wanted.layout != "image":
        return _Obstacle("only images have snapshots")
    if now.snapshots is not None and not (wanted.snapshots or Schedule()).keeps_at_least(
        now.snapshots
    ):
        return _Obstacle("snapshots are never given up by themselves", for_people=True)
    return None


_RULES: dict[str, Callable[[VolumeSpec, VolumeSpec, Means], _Obstacle | None]] = {
    "size": _size,
    "copies": _copies,
    "durability": _durability,
    "interval": _interval,
    "min_copies": _min_copies,
    "unheld_writes": _unheld_writes,
    "labels": _labels,
    "protected": _protected,
    "snapshots": _snapshots,
    "backup": _backup,
    "drill": _backup,
    "encrypted": _encrypted,
}
"""By option, why a change is not taken over; all others stay."""

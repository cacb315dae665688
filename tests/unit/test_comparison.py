"""What the copies of one generation say of each other."""

from __future__ import annotations

import pytest

from pannier.contract.views import CheckView
from pannier.contract.words import CheckState
from pannier.copies.comparison import Judgement, compared, judged
from pannier.storage.blocks import Piece

WHOLE, READ = CheckState.WHOLE, CheckState.READ
DIFFERS, MADE_ANEW = CheckState.DIFFERS, CheckState.MADE_ANEW


def check(
    node: str, state: CheckState, digest: str | None = "x", *, generation: str = "1.1"
) -> CheckView:
    return CheckView(node=node, state=state, generation=generation, digest=digest)


@pytest.mark.parametrize(
    ("holder", "copies", "expected"),
    [
        (check("a", READ), [], [READ]),
        (check("a", READ), [check("b", READ)], [WHOLE, WHOLE]),
        (check("a", READ), [check("b", WHOLE)], [WHOLE, WHOLE]),
        (check("a", READ), [check("b", WHOLE, "y")], [READ, DIFFERS]),
        (check("a", READ), [check("b", READ, "y")], [READ, DIFFERS]),
        (check("a", READ), [check("b", READ, "y"), check("c", READ)], [WHOLE, DIFFERS, WHOLE]),
        (
            check("a", READ),
            [check("b", READ, "y"), check("c", WHOLE, "z")],
            [READ, DIFFERS, DIFFERS],
        ),
        (check("a", READ), [check("b", MADE_ANEW, None)], [READ, MADE_ANEW]),
        # Of another generation, or with checksums of the file system: nothing to compare.
        (check("a", READ), [check("b", WHOLE, "y", generation="1.2")], [READ, WHOLE]),
        (check("a", WHOLE, None), [check("b", WHOLE, None)], [WHOLE, WHOLE]),
        (check("a", READ), [check("b", READ, None)], [READ, READ]),
    ],
)
def test_copies_are_judged(
    holder: CheckView, copies: list[CheckView], expected: list[CheckState]
) -> None:
    judged_holder, others = compared(holder, copies)
    assert [judged_holder.state, *(other.state for other in others)] == expected
    assert [other.node for other in others] == [copy.node for copy in copies]


# -- block by block ---------------------------------------------------------------------------------

X, Y, Z, NOTHING = ("x", False), ("y", False), ("z", False), None
X_PROVED, Y_PROVED, ZEROS_PROVED = ("x", True), ("y", True), ("", True)
SETTLED, WRONG, OPEN = Judgement((), ()), Judgement((4096,), ()), Judgement((), (4096,))


@pytest.mark.parametrize(
    ("holder", "copies", "expected"),
    [
        (X, [X], [SETTLED, SETTLED]),
        (X, [X_PROVED], [SETTLED, SETTLED]),
        (X, [Y_PROVED], [WRONG, SETTLED]),
        (NOTHING, [Y_PROVED], [WRONG, SETTLED]),
        (X, [ZEROS_PROVED], [WRONG, SETTLED]),
        (NOTHING, [ZEROS_PROVED], [SETTLED, SETTLED]),
        (X_PROVED, [Y], [SETTLED, WRONG]),
        # Nobody proves anything, whatever most of them have: one may have been sent it by another.
        (X, [Y], [OPEN, OPEN]),
        (X, [NOTHING], [OPEN, OPEN]),
        (X, [X, Y], [OPEN, SETTLED, OPEN]),
        (X, [Y, Y], [OPEN, OPEN, OPEN]),
        # Two prove different bytes: one was sent them when the holder's disk had changed.
        (X_PROVED, [Y_PROVED], [OPEN, OPEN]),
        (X, [X_PROVED, Y_PROVED], [OPEN, SETTLED, OPEN]),
        # A third one decides.
        (X, [Y, X_PROVED], [SETTLED, WRONG, SETTLED]),
        (X, [Y, Y_PROVED], [WRONG, SETTLED, SETTLED]),
        (X, [Z, Y_PROVED], [WRONG, WRONG, SETTLED]),
    ],
)
def test_blocks_are_judged(
    holder: tuple[str, bool] | None,
    copies: list[tuple[str, bool] | None],
    expected: list[Judgement],
) -> None:
    claims = {
        node: {} if said is None else {4096: Piece(start=4096, digest=said[0], proved=said[1])}
        for node, said in zip("abc", (holder, *copies), strict=False)
    }
    assert list(judged("a", claims).values()) == expected


def test_each_block_is_judged_by_itself() -> None:
    claims = {
        "a": {
            0: Piece(start=0, digest="x", proved=True),
            4096: Piece(start=4096, digest="x", proved=False),
        },
        "b": {
            0: Piece(start=0, digest="y", proved=False),
            4096: Piece(start=4096, digest="y", proved=True),
        },
    }
    assert judged("a", claims) == {"a": Judgement((4096,), ()), "b": Judgement((0,), ())}

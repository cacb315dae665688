"""Join tokens: read strictly, used as often as allowed, and never told apart when wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.errors import Denied, InvalidInput
from pannier.pki.token import Token, new_token, redeem

FINGERPRINT = "ab" * 32
NOW = 1000.0


def test_a_token_survives_its_text() -> None:
    token, _ = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    assert len(token.text()) == 115
    assert Token.parse(f"  {token.text()}\n") == token


def test_neither_repr_nor_record_show_the_secret() -> None:
    token, record = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    assert token.secret not in repr(token)
    assert token.secret not in repr(record)


def test_two_tokens_differ() -> None:
    first, _ = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    second, _ = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    assert first.id != second.id
    assert first.secret != second.secret


@given(st.text(max_size=130))
def test_any_other_text_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Token.parse(text)
    assert "pannier token create" in caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.upper(),
        lambda text: text[:-1],
        lambda text: text + "0",
        lambda text: text.replace("pannier1", "pannier2"),
        lambda text: text.replace("-", " "),
        lambda text: "ᵖ" + text[1:],
    ],
)
def test_a_token_that_was_changed_is_refused(change: Callable[[str], str]) -> None:
    token, _ = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    with pytest.raises(InvalidInput):
        Token.parse(change(token.text()))


def test_a_token_is_good_for_its_number_of_uses() -> None:
    token, record = new_token(NOW, ttl_seconds=60, uses=2, ca_fingerprint=FINGERPRINT)
    left = redeem(record, secret=token.secret, now=NOW)
    assert left is not None
    assert left.uses_left == 1
    assert redeem(left, secret=token.secret, now=NOW) is None


def test_a_record_without_uses_admits_nobody() -> None:
    token, record = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    used = type(record)(
        id=record.id, secret_hash=record.secret_hash, expires_at=record.expires_at, uses_left=0
    )
    with pytest.raises(Denied, match="used up"):
        redeem(used, secret=token.secret, now=NOW)


def test_a_token_ends_at_its_time() -> None:
    token, record = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    assert redeem(record, secret=token.secret, now=NOW + 59.9) is None
    with pytest.raises(Denied, match="expired"):
        redeem(record, secret=token.secret, now=NOW + 60)


def test_unknown_and_wrong_are_the_same_answer() -> None:
    _, record = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    other, _ = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    answers = set()
    for found in (record, None):
        # After the end, too: who has no secret learns nothing about the token.
        for now in (NOW, NOW + 100):
            with pytest.raises(Denied) as caught:
                redeem(found, secret=other.secret, now=now)
            answers.add(str(caught.value))
    assert len(answers) == 1


def test_a_secret_of_another_tokens_id_is_wrong() -> None:
    token, record = new_token(NOW, ttl_seconds=60, uses=1, ca_fingerprint=FINGERPRINT)
    moved = type(record)(
        id="aaaaaaaa", secret_hash=record.secret_hash, expires_at=record.expires_at, uses_left=1
    )
    with pytest.raises(Denied):
        redeem(moved, secret=token.secret, now=NOW)


@pytest.mark.parametrize(("ttl_seconds", "uses"), [(0, 1), (-1, 1), (60, 0), (60, -1)])
def test_a_token_that_lets_nobody_in_is_not_made(ttl_seconds: float, uses: int) -> None:
    with pytest.raises(InvalidInput):
        new_token(NOW, ttl_seconds=ttl_seconds, uses=uses, ca_fingerprint=FINGERPRINT)

"""How long certificates last, and when they are renewed."""

from __future__ import annotations

DAY_SECONDS = 86_400.0
LIFE_SECONDS = 365 * DAY_SECONDS
"""A node's or user's certificate. A year: a key that somebody copied from a backup is worth little for long, and a
laptop or a node that was off for a season still comes back by itself."""
RENEW_SECONDS = LIFE_SECONDS / 3
"""With so much of its time left, a certificate is renewed: at two thirds of a new one's life. Four months are enough for
somebody to bring the node with the authority back. Counted to the end, since a renewed certificate keeps its beginning."""
WARN_SECONDS = LIFE_SECONDS / 6
"""With so much left, people are told: two months of trying have failed by then, and two are left."""
AUTHORITY_WARN_SECONDS = LIFE_SECONDS
"""With so much of the authority's own time left, people are told: what it signs ends sooner from now on."""


def is_due(ends: float, *, now: float, authority_ends: float) -> bool:
    """Whether a certificate is to be renewed. All are Unix times.

    One that ends with its authority is not: the renewed one would end at the same moment.
    """
    return ends - now < RENEW_SECONDS and ends < authority_ends

"""The certificate with which somebody uses a cluster from elsewhere: is it good, and is it to be renewed?"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pannier.core.certificates import is_due
from pannier.core.errors import Denied, PannierError

if TYPE_CHECKING:
    from pannier.contract.operations import Operations
    from pannier.pki.credentials import Credentials

ASK_SECONDS = 3600.0
"""Between two questions for a renewed certificate: a script may run this program each second, and the authority be away."""
ANSWER_SECONDS = 5.0
"""How long a command, which is done by then, waits for the answer."""
_ASKED = "user.asked"


def check_not_ended(credentials: Credentials) -> None:
    """Say it here, where it can be said well: a server would only refuse.

    Raises:
        Denied: the certificate has ended.
    """
    from pannier.host.clock import rfc3339
    from pannier.pki.own import OwnCertificate

    ends, who = OwnCertificate(credentials).facts().ends, credentials.identity
    if time.time() < ends:
        return
    if credentials.kind == "node":
        remedy = f"on {who}: pannier cert renew"
    else:
        remedy = (
            f"on the node with the authority: pannier ca issue {who.name} --for user --out DIRECTORY; "
            "then use that directory"
        )
    raise Denied(
        f"the certificate of {who} in {credentials.directory} ended on {rfc3339(ends)}, by this machine's clock",
        remedy=remedy,
    )


async def renew_if_due(client: Operations, credentials: Credentials) -> str:
    """Renew a user's certificate if it is time. A node's is renewed by its daemon.

    Returns why that failed, for people; empty where nothing did. A power cut leaves the certificate that was there, or
    the renewed one.
    """
    from pannier.contract.bodies import RenewalOrder
    from pannier.host.clock import rfc3339
    from pannier.pki.own import OwnCertificate

    if credentials.kind != "user":
        return ""
    own = OwnCertificate(credentials)
    ends = own.facts().ends
    if not is_due(ends, now=time.time(), authority_ends=own.authority().ends):
        return ""
    if _asked_lately(credentials.directory / _ASKED):
        return ""
    try:
        (credentials.directory / _ASKED).touch()
        request = own.request()
        order = RenewalOrder(certificate=request.certificate, csr=request.csr)
        async with asyncio.timeout(ANSWER_SECONDS):
            own.keep((await client.renew_certificate(order)).certificate)
    except (PannierError, OSError) as error:  # a TimeoutError is an OSError
        said = str(error) or "no answer in time"
        return f"your certificate ends on {rfc3339(ends)}, and could not be renewed: {said}"
    return ""


def _asked_lately(note: Path) -> bool:
    try:
        age = time.time() - note.stat().st_mtime
    except OSError:
        return False
    return 0 <= age < ASK_SECONDS  # a time to come is of a clock that was set back

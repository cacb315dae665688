"""What a failed TLS handshake means for people, on either side of it."""

from __future__ import annotations

import ssl

from pannier.core.errors import Denied, PannierError, PeerUnavailable

_EXPIRED = 10
_NOT_YET_VALID = 9
_HOST_MISMATCH = frozenset({62, 64})
_WRONG_PURPOSE = 26

_CLOCK = (
    "check the clocks of both machines; a node whose certificate has ended: pannier cert renew there; a user: "
    "pannier ca issue on the node with the authority"
)
_OTHER_CLUSTER = "check the address, or let the machine join this cluster"

# What the far side says about *our* certificate, as an alert; named as OpenSSL names them.
_ALERTS = {
    "CERTIFICATE_EXPIRED": ("says that our certificate has expired", _CLOCK),
    "UNKNOWN_CA": ("does not know the cluster that issued our certificate", _OTHER_CLUSTER),
    "CERTIFICATE_REQUIRED": (
        "wants a certificate, and we showed none",
        "run the command on a node, or with a user's certificate",
    ),
    "UNSUPPORTED_CERTIFICATE": (
        "does not accept this kind of certificate",
        "use the certificate of a node or a user of this cluster",
    ),
    "DECRYPT_ERROR": ("does not know the cluster that issued our certificate", _OTHER_CLUSTER),
    "BAD_CERTIFICATE": ("does not accept our certificate", _OTHER_CLUSTER),
    "CERTIFICATE_UNKNOWN": ("does not accept our certificate", _OTHER_CLUSTER),
    "ACCESS_DENIED": ("does not accept our certificate", _OTHER_CLUSTER),
}


def explain_tls(error: ssl.SSLError, *, peer: str) -> PannierError:
    """The error to raise instead of ``error``; ``peer`` names the other side, as ``node alder``.

    Returns:
        Denied where a certificate is the reason, PeerUnavailable for anything else.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _verification(error, peer=peer)
    reason = error.reason or ""
    if "ALERT" in reason:
        for name, (what, remedy) in _ALERTS.items():
            if reason.endswith(name):
                return Denied(f"{peer} {what}", remedy=remedy)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Denied(
            f"{peer} showed no certificate", remedy="use the certificate of a node or a user"
        )
    return PeerUnavailable(
        f"no secure connection to {peer}: {reason.replace('_', ' ').lower() or error}",
        remedy="check that address and port belong to pannierd of the same version",
    )


def _verification(error: ssl.SSLCertVerificationError, *, peer: str) -> Denied:
    if error.verify_code == _EXPIRED:
        return Denied(f"the certificate of {peer} has expired", remedy=_CLOCK)
    if error.verify_code == _NOT_YET_VALID:
        return Denied(f"the certificate of {peer} is not valid yet", remedy=_CLOCK)
    if error.verify_code in _HOST_MISMATCH:
        return Denied(
            f"{peer} showed the certificate of another machine",
            remedy="check the nodes' addresses with 'pannier node ls'",
        )
    if error.verify_code == _WRONG_PURPOSE:
        return Denied(
            f"{peer} showed a certificate that is not for this purpose",
            remedy="only nodes' certificates serve; check the address",
        )
    return Denied(
        f"the certificate of {peer} is not from this cluster ({error.verify_message})",
        remedy=_OTHER_CLUSTER,
    )

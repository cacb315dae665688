"""The cluster's certificate authority: one self-signed ECDSA P-256 key that issues everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pannier.core.certificates import AUTHORITY_LIFE_SECONDS, LIFE_SECONDS
from pannier.core.errors import AlreadyExists, Denied, InvalidInput
from pannier.core.node import check_node_name
from pannier.core.removals import serial
from pannier.pki import files
from pannier.pki.identity import (
    NodeIdentity,
    UserIdentity,
    check_cluster,
    check_user_name,
    is_issued_by,
)

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
CLUSTER_NAME = "Pannier cluster CA"
STORE_NAME = "Pannier store CA"
STORE_DIRECTORY = "store"
"""Folder in the cluster's authority for the authority of its etcd, and in a node's files for what that issued: it opens
etcd and nothing else, and nothing else opens etcd."""
CA_VALIDITY = timedelta(seconds=AUTHORITY_LIFE_SECONDS)
LEAF_VALIDITY = timedelta(seconds=LIFE_SECONDS)
MEMBER_VALIDITY = timedelta(days=1826)
"""An etcd member's first: it may be on a machine that is no node, where nobody renews it but a person. A renewed one lasts
as long as all others."""
BACKDATE = timedelta(hours=1)
"""Certificates begin this long before they are made: the clocks of a cluster may differ."""
REQUEST_LIMIT = 16384
"""The longest certificate request that is accepted, in characters: a P-256 one has some 500."""

_SERVER = ExtendedKeyUsageOID.SERVER_AUTH
_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsigned:
    """What a certificate will say. Its parts were checked, and nothing was signed.

    Attributes:
        common_name: the subject's, for people.
        public_key: the asker has its private key.
        names: the alternative names; they have the identity.
        usages: for which ends of TLS it is.
        life: for how long it counts, from its signing on: as long as its kind needs until somebody renews it.
        since: from when on it counts at the latest; None for the time of signing.
        number: its serial number; None for a random one.
    """

    common_name: str
    public_key: ec.EllipticCurvePublicKey
    names: x509.SubjectAlternativeName
    usages: Sequence[x509.ObjectIdentifier]
    life: timedelta
    since: datetime | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues certificates. All issued PEM texts are chains: the certificate, then the CA's.

    Only the public key is taken from a request, after its signature has shown that the asker has the
    private key. The names in a request are ignored.

    Attributes:
        cluster: the cluster's id, part of every identity.
        certificate_pem: the CA's own certificate.
    """

    cluster: str
    certificate_pem: str
    _certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey
    _clock: Callable[[], float]

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        cluster: str,
        name: str = CLUSTER_NAME,
        clock: Callable[[], float] = time.time,
    ) -> Authority:
        """Make a new CA in ``directory`` (0700). May be repeated after a crash, and then finishes.

        Args:
            name: which of the cluster's authorities it is, for people.

        Raises:
            AlreadyExists: there is one; it was not touched.
            InvalidInput: ``cluster`` cannot be an id.
            Denied: the key of an earlier attempt is too open, or damaged.
        """
        check_cluster(cluster)
        if (directory / CA_CERTIFICATE).exists():
            raise AlreadyExists(
                f"{directory} has a certificate authority already; it was left as it is",
                remedy="this machine belongs to a cluster: see 'pannier status'",
            )
        files.private_directory(directory)
        key_path = directory / CA_KEY
        # A key without a certificate has issued nothing: an earlier attempt ended right there.
        if not key_path.exists():
            new = ec.generate_private_key(ec.SECP256R1())
            files.write(key_path, private_pem(new), mode=files.PRIVATE_MODE, replace=False)
        key = _read_key(key_path)
        certificate = _self_signed(key, cluster=cluster, name=name, now=_at(clock))
        files.write(
            directory / CA_CERTIFICATE,
            _pem(certificate),
            mode=files.PUBLIC_MODE,
            replace=False,
        )
        return cls.load(directory, clock=clock)

    @classmethod
    def load(cls, directory: Path, *, clock: Callable[[], float] = time.time) -> Authority:
        """Read the CA of ``directory``.

        Raises:
            NotFound: there is none.
            Denied: key and certificate do not belong together, or the key file is too open.
        """
        text = files.read(directory / CA_CERTIFICATE)
        key = _read_key(directory / CA_KEY)
        try:
            certificate = x509.load_pem_x509_certificate(text.encode())
        except ValueError as error:
            raise _damaged(directory / CA_CERTIFICATE, "is not a certificate") from error
        if certificate.public_key() != key.public_key():
            raise _damaged(directory / CA_CERTIFICATE, "does not belong to the key beside it")
        name = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        if len(name) != 1 or not isinstance(name[0].value, str):
            raise _damaged(directory / CA_CERTIFICATE, "is not a Pannier cluster's")
        return cls(name[0].value, text, certificate, key, clock)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA's certificate, hexadecimal: what join tokens pin."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def prepare_node(self, csr_pem: str, *, node: str, addresses: Sequence[str]) -> Unsigned:
        """All that a node's certificate says, for both ends of TLS; nothing is signed yet.

        Args:
            csr_pem: a certificate request for a P-256 key.
            node: the node's name; TLS clients use it as the server's name.
            addresses: IP addresses or host names at which it is reached.

        Raises:
            InvalidInput: the request or a name cannot be accepted.
        """
        identity = NodeIdentity(self.cluster, check_node_name(node))
        return Unsigned(
            common_name=node,
            public_key=requested_key(csr_pem),
            names=_alternative_names((node, *addresses, *_LOOPBACK), identity.uri),
            usages=(_SERVER, _CLIENT),
            life=LEAF_VALIDITY,
        )

    def issue_node(self, csr_pem: str, *, node: str, addresses: Sequence[str]) -> str:
        """A node's certificate; arguments and errors as :meth:`prepare_node`."""
        return self.sign(self.prepare_node(csr_pem, node=node, addresses=addresses))

    def issue_user(self, csr_pem: str, *, user: str) -> str:
        """A user's certificate, for the client's end only.

        Raises:
            InvalidInput: the request or the name cannot be accepted.
        """
        identity = UserIdentity(self.cluster, check_user_name(user))
        return self.sign(
            Unsigned(
                common_name=user,
                public_key=requested_key(csr_pem),
                names=_alternative_names((), identity.uri),
                usages=(_CLIENT,),
                life=LEAF_VALIDITY,
            )
        )

    def issue_etcd(
        self, csr_pem: str, *, member: str, addresses: Sequence[str], membership: int
    ) -> str:
        """An etcd member's certificate: it serves clients and speaks to other members.

        It carries no identity of ours, so it can act neither for a node nor for a user. It is for
        clients too, because etcd's own gateway uses the server's certificate as a client.

        Args:
            membership: of the node that the member is on: see :mod:`pannier.core.removals`.

        Raises:
            InvalidInput: the request or a name cannot be accepted.
        """
        return self.sign(
            Unsigned(
                common_name=member,
                public_key=requested_key(csr_pem),
                names=_alternative_names((check_node_name(member), *addresses, *_LOOPBACK), None),
                usages=(_SERVER, _CLIENT),
                life=MEMBER_VALIDITY,
                number=serial(member, membership),
            )
        )

    def issue_store_client(self, csr_pem: str, *, node: str, membership: int) -> str:
        """A certificate with which a node uses the cluster's etcd; for the client's end only.

        Args:
            membership: the node's: see :mod:`pannier.core.removals`.

        Raises:
            InvalidInput: the request or the name cannot be accepted.
        """
        identity = NodeIdentity(self.cluster, check_node_name(node))
        return self.sign(
            Unsigned(
                common_name=node,
                public_key=requested_key(csr_pem),
                names=_alternative_names((), identity.uri),
                usages=(_CLIENT,),
                life=LEAF_VALIDITY,
                number=serial(node, membership),
            )
        )

    def renew(self, present: x509.Certificate, *, number: int | None = None) -> str:
        """A certificate for the same key and with the same names as ``present`` that lasts longer.

        It begins when ``present`` does. So one that was signed while the clock was ahead counts when it is right again.

        Args:
            number: its serial number; None for a random one.

        Raises:
            Denied: this authority did not issue ``present``.
        """
        if not is_issued_by(present, self._certificate):
            raise Denied(
                "the certificate to renew is of another authority",
                remedy="issue a new one: see 'pannier ca issue --help'",
            )
        key, extensions = present.public_key(), present.extensions
        assert isinstance(key, ec.EllipticCurvePublicKey), "we issue for no other kind"
        [name] = present.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return self.sign(
            Unsigned(
                common_name=str(name.value),
                public_key=key,
                names=extensions.get_extension_for_class(x509.SubjectAlternativeName).value,
                usages=tuple(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value),
                life=LEAF_VALIDITY,
                since=present.not_valid_before_utc,
                number=number,
            )
        )

    @property
    def ends(self) -> float:
        """The end of the CA's own certificate, Unix time."""
        return self._certificate.not_valid_after_utc.timestamp()

    def sign(self, unsigned: Unsigned) -> str:
        """The certificate, as a chain."""
        now = _at(self._clock)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.cluster),
                x509.NameAttribute(NameOID.COMMON_NAME, unsigned.common_name),
            ]
        )
        authority_key = self._certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(unsigned.public_key)
            .serial_number(unsigned.number or x509.random_serial_number())
            .not_valid_before(min(unsigned.since or now, now - BACKDATE))
            .not_valid_after(min(now + unsigned.life, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(unsigned.usages), critical=False)
            .add_extension(unsigned.names, critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(unsigned.public_key), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key),
                critical=False,
            )
        )
        return _pem(builder.sign(self._key, hashes.SHA256())) + self.certificate_pem


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """A private key as PKCS #8 in PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def load_private(pem: str, *, path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an ECDSA private key; the error's message names ``path``.

    Raises:
        Denied: it is something else.
    """
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise _damaged(path, "is not a private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _damaged(path, "is not an ECDSA key")
    return key


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    return load_private(files.read_private(path), path=path)


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request, whose signature shows that the asker has its private half.

    Raises:
        InvalidInput: it is not such a request, or for another kind of key.
    """
    remedy = "make the request with 'pannier join' or for an ECDSA P-256 key"
    if len(csr_pem) > REQUEST_LIMIT:
        raise InvalidInput("the certificate request is too long", remedy=remedy)
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature, TypeError) as error:
        raise InvalidInput("the certificate request cannot be read", remedy=remedy) from error
    if not valid:
        raise InvalidInput("the certificate request is not signed with its own key", remedy=remedy)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("the certificate request is for another kind of key", remedy=remedy)
    return key


def _alternative_names(names: Sequence[str], uri: str | None) -> x509.SubjectAlternativeName:
    found: dict[x509.GeneralName, None] = {}
    for name in names:
        try:
            found[x509.IPAddress(ip_address(name))] = None
        except ValueError:
            # TLS clients refuse a server's name with an empty or over-long part before connecting.
            if any(not 0 < len(label) <= 63 for label in name.split(".")):
                raise InvalidInput(
                    f"{name[:80]!r} is neither an IP address nor a host name",
                    remedy="give the address at which the other nodes reach this one",
                ) from None
            found[x509.DNSName(_host(name))] = None
    if uri is not None:
        found[x509.UniformResourceIdentifier(uri)] = None
    return x509.SubjectAlternativeName(found)


def _host(name: str) -> str:
    plain = name.isascii() and all(c.isalnum() or c in "-._" for c in name)
    if not plain or len(name) > 253:
        raise InvalidInput(
            f"{name[:80]!r} is neither an IP address nor a host name",
            remedy="give the address at which the other nodes reach this one",
        )
    return name


def _self_signed(
    key: ec.EllipticCurvePrivateKey, *, cluster: str, name: str, now: datetime
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _at(clock: Callable[[], float]) -> datetime:
    return datetime.fromtimestamp(clock(), UTC).replace(microsecond=0)


def _damaged(path: Path, what: str) -> Denied:
    return Denied(f"{path} {what}", remedy="restore the directory from a backup")

"""A node's or user's own key and certificate, and the TLS contexts made from them.

TLS 1.3 only. Servers and clients trust the cluster's CA and nothing else; a client names the node
that it means as ``server_hostname``, whatever the address it connects to.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pannier.core.node import Fingerprints
from pannier.pki import files
from pannier.pki.authority import CA_CERTIFICATE, STORE_DIRECTORY, private_pem
from pannier.pki.facts import facts_of
from pannier.pki.identity import Identity, fingerprint, identity_of
from pannier.pki.key_files import KeyFiles


@dataclass(frozen=True, slots=True)
class KeyAndRequest:
    """A new key, and the request with which the CA issues its certificate; both PEM."""

    key_pem: str
    csr_pem: str


def new_request(name: str) -> KeyAndRequest:
    """Make a P-256 key and a request for it. The CA ignores ``name``; people may read it."""
    key = ec.generate_private_key(ec.SECP256R1())
    return KeyAndRequest(private_pem(key), request_for(key, name))


def request_for(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A request for a key that is there, PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class Credentials(KeyFiles):
    """A node's (the files' base name is ``node``) or a person's (``user``), in a directory for its owner only.

    Attributes:
        identity: who they are for, as the certificate says.
    """

    identity: Identity
    _contexts: WeakSet[ssl.SSLContext] = field(
        default_factory=WeakSet, init=False, compare=False, repr=False
    )

    @classmethod
    def save(
        cls, directory: Path, *, ca: str, certificate: str, key: str, kind: str = "node"
    ) -> Credentials:
        """Write them (each file atomically, the key readable by its owner only) and load them.

        Args:
            directory: made where it is missing, and closed to others.
            ca: the CA's certificate, PEM.
            certificate: the issued chain, PEM.
            key: the private key, PEM.
            kind: the files' base name.

        Raises:
            Denied: they do not belong together; nothing was written.
        """
        identity = _identity(KeyFiles(directory, kind), certificate, key=key, ca=ca)
        files.private_directory(directory)
        # The certificate comes last: without it, nothing here counts.
        files.write(directory / f"{kind}.key", key, mode=files.PRIVATE_MODE, replace=True)
        files.write(directory / CA_CERTIFICATE, ca, mode=files.PUBLIC_MODE, replace=True)
        files.write(directory / f"{kind}.crt", certificate, mode=files.PUBLIC_MODE, replace=True)
        return cls(directory, kind, identity)

    @classmethod
    def load(cls, directory: Path, *, kind: str = "node") -> Credentials:
        """Read and check them.

        Raises:
            NotFound: a file is missing.
            Denied: the key file is open to others, or the files do not belong together.
        """
        at = KeyFiles(directory, kind)
        ca, certificate = files.read(at.ca_path), files.read(at.certificate_path)
        key = files.read_private(at.key_path)
        return cls(directory, kind, _identity(at, certificate, key=key, ca=ca))

    @property
    def fingerprints(self) -> Fingerprints:
        """Of the own certificate and its key."""
        return facts_of(self.certificate_path.read_bytes()).fingerprints

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the CA's certificate, hexadecimal."""
        return fingerprint(self.ca_path.read_bytes())

    def server_context(self, *, client_certificate_required: bool) -> ssl.SSLContext:
        """A context for listening.

        Args:
            client_certificate_required: True for the transport. False for the API, where a machine
                that joins has none yet; one that is shown must still be from this cluster.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._fill(context)
        self._show_certificate(context)
        context.verify_mode = (
            ssl.CERT_REQUIRED if client_certificate_required else ssl.CERT_OPTIONAL
        )
        # No resumption: each connection shows its certificate anew.
        context.num_tickets = 0
        return context

    def client_context(self) -> ssl.SSLContext:
        """A context for connecting, with ``server_hostname=<node name>`` (or etcd's address)."""
        context = self.anonymous_context()
        self._show_certificate(context)
        return context

    def anonymous_context(self) -> ssl.SSLContext:
        """As :meth:`client_context`, for a connection that shows no certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._fill(context)
        return context

    def take_up(self) -> None:
        """Let all contexts that were made so far show the certificate that is on the disk now.

        Connections that are open go on with the one that they have shown. Only the event loop calls this, and only it
        shakes hands: so no handshake sees half of it.

        Raises:
            NotFound, Denied: as :meth:`load`; every context goes on with what it had.
        """
        Credentials.load(self.directory, kind=self.kind)
        for context in list(self._contexts):
            context.load_cert_chain(str(self.certificate_path), str(self.key_path))

    def _show_certificate(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(str(self.certificate_path), str(self.key_path))
        self._contexts.add(context)

    def _fill(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cafile=str(self.ca_path))


def store_credentials(node: Credentials) -> Credentials:
    """With which a node uses the store: those that the store's own authority issued.

    A node that an earlier version set up has none until it was given some: it has its own, ``node``, which the etcd that
    belongs to it lets in.

    Raises:
        NotFound, Denied: as :meth:`Credentials.load`.
    """
    theirs = node.directory / STORE_DIRECTORY
    return Credentials.load(theirs) if theirs.is_dir() else node


def _identity(at: KeyFiles, certificate: str, *, key: str, ca: str) -> Identity:
    parsed = at.check_together(certificate, key=key, ca=ca)
    return identity_of(parsed.public_bytes(serialization.Encoding.DER))

"""The cluster's CA, the identities in its certificates, and who is turned away."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pannier.core.certificates import LIFE_SECONDS
from pannier.core.errors import AlreadyExists, Denied, InvalidInput, NotFound
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.pki.identity import NodeIdentity, UserIdentity, fingerprint, identity_of

NOW = 1_800_000_000.0
ADDRESSES = ["10.0.0.5", "alder.example.org"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", cluster="c1", clock=lambda: NOW)


def leaf_of(chain: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain.encode())


def der_of(chain: str) -> bytes:
    return leaf_of(chain).public_bytes(serialization.Encoding.DER)


def self_signed(*names: x509.GeneralName, ca: bool = False) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alder")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def test_a_new_ca_is_for_its_owner_only_and_loads_again(
    authority: Authority, tmp_path: Path
) -> None:
    directory = tmp_path / "ca"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "ca.key").stat().st_mode & 0o777 == 0o600
    again = Authority.load(directory)
    assert (again.cluster, again.fingerprint) == ("c1", authority.fingerprint)
    assert sorted(os.listdir(directory)) == ["ca.crt", "ca.key"]


def test_an_existing_ca_is_never_overwritten(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        Authority.create(tmp_path / "ca", cluster="c2")
    assert Authority.load(tmp_path / "ca").fingerprint == authority.fingerprint


def test_a_creation_that_was_interrupted_is_finished_with_the_same_key(
    authority: Authority, tmp_path: Path
) -> None:
    directory = tmp_path / "ca"
    key = (directory / "ca.key").read_text()
    (directory / "ca.crt").unlink()
    Authority.create(directory, cluster="c1")
    assert (directory / "ca.key").read_text() == key


@pytest.mark.parametrize("cluster", ["", "C1", "a/b", "a b", "-a", "a" * 64, "ä"])
def test_a_cluster_id_that_cannot_be_in_a_uri_is_refused(tmp_path: Path, cluster: str) -> None:
    with pytest.raises(InvalidInput):
        Authority.create(tmp_path / "ca", cluster=cluster)
    assert not (tmp_path / "ca").exists()


def test_a_ca_key_that_others_can_read_is_not_used(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "ca" / "ca.key").chmod(0o640)
    with pytest.raises(Denied, match=r"0640.*chmod 600"):
        Authority.load(tmp_path / "ca")


def test_a_missing_ca_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="pannier init"):
        Authority.load(tmp_path)


def test_a_node_certificate_serves_and_asks_under_its_name_and_addresses(
    authority: Authority,
) -> None:
    chain = authority.issue_node(new_request("x").csr_pem, node="alder", addresses=ADDRESSES)
    leaf = leaf_of(chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["alder", "alder.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "10.0.0.5",
        "127.0.0.1",
        "::1",
    ]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert identity_of(der_of(chain)) == NodeIdentity("c1", "alder")
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "alder"


def test_an_issued_chain_ends_with_the_ca(authority: Authority) -> None:
    chain = authority.issue_node(new_request("x").csr_pem, node="alder", addresses=[])
    certificates = x509.load_pem_x509_certificates(chain.encode())
    assert [c.fingerprint(hashes.SHA256()).hex() for c in certificates] == [
        fingerprint(chain),
        authority.fingerprint,
    ]
    certificates[0].verify_directly_issued_by(certificates[1])


def test_certificates_begin_an_hour_ago_because_clocks_differ(authority: Authority) -> None:
    leaf = leaf_of(authority.issue_user(new_request("x").csr_pem, user="ann"))
    assert leaf.not_valid_before_utc.timestamp() == NOW - 3600
    assert leaf.not_valid_after_utc.timestamp() == NOW + LIFE_SECONDS


def test_no_certificate_outlives_the_ca(authority: Authority, tmp_path: Path) -> None:
    late = Authority.load(tmp_path / "ca", clock=lambda: NOW + 9.5 * 365 * 86400)
    ca = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    leaf = leaf_of(late.issue_user(new_request("x").csr_pem, user="ann"))
    assert leaf.not_valid_after_utc == ca.not_valid_after_utc


def test_a_user_certificate_only_asks(authority: Authority) -> None:
    chain = authority.issue_user(new_request("x").csr_pem, user="ann@example.org")
    usage = leaf_of(chain).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert identity_of(der_of(chain)) == UserIdentity("c1", "ann@example.org")


def test_an_etcd_certificate_speaks_for_nobody(authority: Authority) -> None:
    chain = authority.issue_etcd(
        new_request("x").csr_pem, member="etcd1", addresses=["10.0.0.9"], membership=1
    )
    names = leaf_of(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    with pytest.raises(Denied, match="names no node or user"):
        identity_of(der_of(chain))


def test_only_the_key_of_a_request_counts_never_its_names(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.SubjectAlternativeName([uri("pannier://c1/node/birch"), x509.DNSName("birch")])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "birch")]))
        .add_extension(wish, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    text = csr.public_bytes(serialization.Encoding.PEM).decode()
    chain = authority.issue_node(text, node="alder", addresses=[])
    assert identity_of(der_of(chain)) == NodeIdentity("c1", "alder")
    assert b"birch" not in der_of(chain)
    assert leaf_of(chain).public_key() == key.public_key()
    constraints = leaf_of(chain).extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca


def test_requests_that_cannot_be_trusted_are_refused(authority: Authority) -> None:
    def request(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    good = x509.load_pem_x509_csr(new_request("x").csr_pem.encode())
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[-5] ^= 1
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    other_kinds = (
        request(rsa.generate_private_key(65537, 2048)),
        request(ec.generate_private_key(ec.SECP384R1())),
    )
    for bad in (forged, "", "nonsense", "x" * 100_000, *other_kinds):
        with pytest.raises(InvalidInput):
            authority.issue_user(bad, user="ann")


@pytest.mark.parametrize("address", ["", "a b", "a..b", "*.example.org", "ä.org", "x" * 64])
def test_an_address_that_is_none_is_refused(authority: Authority, address: str) -> None:
    with pytest.raises(InvalidInput):
        authority.issue_node(new_request("x").csr_pem, node="alder", addresses=[address])


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "names no node"),
        ([x509.DNSName("alder")], "names no node"),
        ([uri("https://c1/node/alder")], "names no node"),
        ([uri("pannier://c1/node/a"), uri("pannier://c1/node/b")], "names 2"),
        ([uri("pannier://c1/node/a"), uri("PANNIER://c1/node/b")], "names 2"),
        ([uri("PANNIER://c1/node/a")], "another form"),
        ([uri("pannier://c1/node/")], "another form"),
        ([uri("pannier://c1/admin/a")], "another form"),
        ([uri("pannier://c1/node/a/b")], "another form"),
        ([uri("pannier://c1/node/a?x=y")], "cannot be"),
        ([uri("pannier://C1/node/a")], "cannot be"),
        ([uri("pannier://c1/node/a%2fb")], "cannot be"),
    ],
)
def test_a_certificate_without_one_clear_identity_is_denied(
    names: list[x509.GeneralName], why: str
) -> None:
    with pytest.raises(Denied, match=why):
        identity_of(self_signed(*names))


def test_a_cas_own_certificate_is_no_identity() -> None:
    with pytest.raises(Denied, match="CA's own"):
        identity_of(self_signed(uri("pannier://c1/node/a"), ca=True))


@pytest.mark.parametrize("der", [b"", b"nonsense"])
def test_no_certificate_is_denied(der: bytes) -> None:
    with pytest.raises(Denied):
        identity_of(der)


def test_fingerprints_of_pem_and_der_agree(authority: Authority) -> None:
    pem = authority.certificate_pem
    assert fingerprint(pem) == fingerprint(ssl.PEM_cert_to_DER_cert(pem)) == authority.fingerprint
    with pytest.raises(InvalidInput):
        fingerprint("nonsense")


def save(authority: Authority, directory: Path, *, name: str = "alder") -> Credentials:
    request = new_request(name)
    chain = authority.issue_node(request.csr_pem, node=name, addresses=[])
    return Credentials.save(
        directory, ca=authority.certificate_pem, certificate=chain, key=request.key_pem
    )


def test_credentials_are_kept_for_their_owner_only(authority: Authority, tmp_path: Path) -> None:
    saved = save(authority, tmp_path / "node")
    assert Credentials.load(tmp_path / "node") == saved
    assert saved.identity == NodeIdentity("c1", "alder")
    assert saved.key_path.stat().st_mode & 0o777 == 0o600
    assert saved.ca_fingerprint == authority.fingerprint
    assert sorted(os.listdir(tmp_path / "node")) == ["ca.crt", "node.crt", "node.key"]


def test_a_key_that_others_can_read_is_not_used(authority: Authority, tmp_path: Path) -> None:
    saved = save(authority, tmp_path / "node")
    saved.key_path.chmod(0o604)
    with pytest.raises(Denied, match="0604"):
        Credentials.load(tmp_path / "node")


def test_a_certificate_for_another_key_or_from_another_ca_is_not_saved(
    authority: Authority, tmp_path: Path
) -> None:
    request, other = new_request("alder"), new_request("alder")
    chain = authority.issue_node(request.csr_pem, node="alder", addresses=[])
    foreign = Authority.create(tmp_path / "other", cluster="c1")
    place = tmp_path / "node"
    with pytest.raises(Denied, match="does not belong to the key"):
        Credentials.save(place, ca=authority.certificate_pem, certificate=chain, key=other.key_pem)
    with pytest.raises(Denied, match="not issued by the CA"):
        Credentials.save(place, ca=foreign.certificate_pem, certificate=chain, key=request.key_pem)
    assert not place.exists()

"""Makes keys and certificate chains for signing: good ones, and each kind that must be refused."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEYS: Mapping[str, Any] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}
_PEM = serialization.Encoding.PEM


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tests"), _common(common)])


def _common(name: str) -> x509.NameAttribute:
    return x509.NameAttribute(NameOID.COMMON_NAME, name)


def _usage(signs: bool, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signs, not signs and not issues, False, False, False, issues, issues, False, False)


def chain(
    kind: str = "P-256",
    days: tuple[float, float] = (-1, 365),
    signs: bool = True,
    purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.EMAIL_PROTECTION,),
    critical: bool = False,
) -> tuple[str, str]:
    """(certificates, private key) as PEM: a signer's, valid in these days from now, and its issuer's."""
    now, issuer, key = datetime.now(UTC), KEYS["P-256"](), KEYS[kind]()

    def certificate(subject: str, public: Any, is_ca: bool) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name("issuer")).public_key(public)
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now + timedelta(days[0])).not_valid_after(now + timedelta(days[1]))
        made = made.add_extension(x509.BasicConstraints(is_ca, None), True)
        made = made.add_extension(_usage(signs and not is_ca, is_ca), True)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
        return made.add_extension(authority, False).add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public), False
        )

    leaf = certificate("signer", key.public_key(), False)
    if purposes:
        leaf = leaf.add_extension(x509.ExtendedKeyUsage(purposes), critical)
    signed = [leaf, certificate("issuer", issuer.public_key(), True)]
    pems = [each.sign(issuer, hashes.SHA256()).public_bytes(_PEM).decode() for each in signed]
    secret = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return "".join(pems), secret.decode()


def write_chain(folder: Path, **options: Any) -> dict[str, str]:
    """The same as two files; {certificate, private_key}: their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, text in zip(("certificate", "private_key"), chain(**options), strict=True):
        (folder / f"{name}.pem").write_text(text)
        paths[name] = str(folder / f"{name}.pem")
    return paths

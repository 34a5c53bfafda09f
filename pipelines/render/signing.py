"""Signs pictures as C2PA has it, and says what is wrong with the signature that one carries.

Certificate and key come from files or the environment of each machine, and are in no settings, log or message.
"""

import io
import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from PIL import Image

from pipelines.pipeline_error import PipelineError
from pipelines.render.marks import MADE_BY_AI, SOFTWARE, VERSION

try:
    import c2pa
except ImportError:  # an extra of this project: most jobs sign nothing
    c2pa = None

CERTIFICATE_ENV, KEY_ENV = "STEPTHRIFT_C2PA_CERTIFICATE", "STEPTHRIFT_C2PA_PRIVATE_KEY"
PAUSES_S = (1.0, 4.0, 16.0)  # before a picture is sent to a time stamp server again
_AGENT = {"name": SOFTWARE, "version": VERSION}
_CREATED = {"action": "c2pa.created", "softwareAgent": _AGENT, "digitalSourceType": MADE_BY_AI}
_CLAIM = {
    "claim_generator_info": [_AGENT],
    "assertions": [{"label": "c2pa.actions.v2", "created": True, "data": {"actions": [_CREATED]}}],
}
# Thumbnails would make a signature of 3 KB one of up to 1 MB, and fifty times as slow; `verify` reads what was signed.
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False},
}


class SigningError(PipelineError, RuntimeError):
    """A certificate or a key that is not there or cannot sign, or a picture that cannot be signed: why, the remedy."""


@dataclass(frozen=True)
class SigningConfig:
    """Paths on each machine; None: an environment variable has it, which holds a path or the PEM text itself.

    timestamps: URL of a time stamp server; None: no time stamps.
    """

    certificate: str | None = None
    private_key: str | None = None
    timestamps: str | None = None


@dataclass(frozen=True)
class Credentials:
    """chain: certificates as PEM, the signer's first; key: PKCS#8 as PEM; algorithm: in C2PA's words."""

    chain: str = field(repr=False)
    key: str = field(repr=False)
    algorithm: str
    timestamps: str | None = None


def read_credentials(config: SigningConfig) -> Credentials:
    """What signs here. Raises SigningError where it is not there, is not valid now, or may not sign."""
    if c2pa is None:
        raise SigningError("signing needs the package c2pa-python: pip install -e '.[c2pa]' on every machine")
    chain_pem = _pem("certificate", config.certificate, CERTIFICATE_ENV)
    key_pem = _pem("private_key", config.private_key, KEY_ENV)
    chain, key = _chain(chain_pem), _key(key_pem)
    if fault := _certificate_fault(chain[0], key):
        raise SigningError(fault)
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain_text = "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in chain)
    return Credentials(chain_text, plain.decode(), _algorithm(key), config.timestamps)


def check_signing(config: SigningConfig) -> None:
    """Signs a small picture, without a time stamp, and reads it back. Raises SigningError."""
    found = read_credentials(config)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="png")
    signed = Signer(Credentials(found.chain, found.key, found.algorithm)).sign(buffer.getvalue(), "image/png")
    if fault := signature_fault(signed, "image/png"):
        raise SigningError(f"what this certificate signs is not accepted by C2PA readers: {fault}")


class Signer:
    """Signs bytes; threads may share it."""

    def __init__(self, credentials: Credentials) -> None:
        info = c2pa.C2paSignerInfo(
            credentials.algorithm.encode(),
            credentials.chain.encode(),
            credentials.key.encode(),
            credentials.timestamps,
        )
        self._pauses_s = PAUSES_S if credentials.timestamps else ()
        try:
            self._signer, self._context = c2pa.Signer.from_info(info), c2pa.Context.from_dict(_SETTINGS)
        except c2pa.C2paError as error:
            raise SigningError(f"certificate and key cannot sign: {error}") from error

    def sign(self, data: bytes, media_type: str) -> bytes:
        """The picture with a signed manifest; other bytes each time. SigningError."""
        for pause_s in self._pauses_s:
            try:
                return self._signed(data, media_type)
            except SigningError:  # its time stamp server may be away for a moment
                time.sleep(pause_s)
        return self._signed(data, media_type)

    def _signed(self, data: bytes, media_type: str) -> bytes:
        signed = io.BytesIO()
        try:
            with c2pa.Builder(_CLAIM, self._context) as builder:
                builder.sign(self._signer, media_type, io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise SigningError(f"a picture could not be signed: {error}") from error
        return signed.getvalue()


def signature_fault(data: bytes, media_type: str) -> str | None:
    """What C2PA's reader has against a picture's signature; None: nothing. Who may be trusted is not asked."""
    if c2pa is None:
        raise SigningError("reading signatures needs the package c2pa-python: pip install -e '.[c2pa]'")
    try:
        with c2pa.Reader(media_type, io.BytesIO(data), context=c2pa.Context.from_dict(_SETTINGS)) as reader:
            if reader.get_validation_state() != "Invalid":
                return None
            found = json.loads(reader.json()).get("validation_status", ())
    except c2pa.C2paError as error:
        return f"no signature can be read: {error}".splitlines()[0][:200]
    codes = [each["code"] for each in found if each["code"] != "signingCredential.untrusted"]
    return f"the signature does not hold: {', '.join(dict.fromkeys(codes)) or 'invalid'}"


def _pem(name: str, path: str | None, variable: str) -> bytes:
    """The PEM text from its file, or from the environment."""
    given = os.environ.get(variable) if path is None else None
    if given and "-----BEGIN" in given:
        return given.encode()
    place = path or given
    if not place:
        raise SigningError(f"no {name}: set provenance.c2pa.{name} to its file, or {variable} to its file or its text")
    try:
        with open(place, "rb") as file:
            return file.read()
    except OSError as error:
        raise SigningError(f"the {name} at {place} cannot be read: {error.strerror}") from None


def _chain(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise SigningError(
            "the certificate is no PEM chain: it begins with the signer's, each issuer follows"
        ) from None


def _key(pem: bytes) -> Any:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise SigningError(
            "the private_key is encrypted, and nobody is there to type its password: decrypt it"
        ) from None
    except ValueError:
        raise SigningError("the private_key is no key in PEM") from None


def _certificate_fault(leaf: x509.Certificate, key: Any) -> str | None:
    """Why this certificate and this key cannot sign today."""
    today = datetime.now(UTC)
    if leaf.not_valid_after_utc < today:
        return f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d}: renew it"
    if leaf.not_valid_before_utc > today:
        return f"the certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}: is the clock right?"
    if leaf.public_key() != key.public_key():
        return "the private_key is not the certificate's: the signer's certificate must stand first in its file"
    if not _may_sign(leaf):
        return (
            "the certificate has no right to sign: it needs the key usage digitalSignature and an extended key usage, "
            "for example emailProtection"
        )
    return None


def _may_sign(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return False
    return usage.digital_signature


def _algorithm(key: Any) -> str:
    """By the kind of key. Raises SigningError for one that C2PA does not take."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        found = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}.get(key.curve.name)
        if found:
            return found
    elif isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise SigningError("C2PA takes keys of P-256, P-384, P-521, Ed25519, or RSA of 2048 bits or more")

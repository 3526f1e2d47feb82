"""An authority of the tests' own, and the certificates that it signs; nothing outlives a test."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

DAY = timedelta(days=1)
LOCAL = (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))
"""What the tests' servers are called."""
ELSEWHERE = (x509.DNSName("elsewhere.invalid"),)


class Pair(NamedTuple):
    """Two PEM files."""

    certificate: Path
    key: Path

    @property
    def both(self) -> str:
        """The text of the key, and behind it that of the certificate."""
        return self.key.read_text() + self.certificate.read_text()


@dataclass(frozen=True)
class Authority:
    """Signs what is asked for; `file` is its own certificate (PEM)."""

    file: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, folder: Path, name: str) -> Self:
        """Make a new one, whose files go to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = _begin(name, key, expired=False).issuer_name(_name(name))
        builder = builder.add_extension(basic, critical=True).add_extension(usage, critical=True)
        made = builder.sign(key, hashes.SHA256())
        file = folder / f"{name}.pem"
        file.write_bytes(made.public_bytes(Encoding.PEM))
        return cls(file, made, key)

    def sign(
        self,
        name: str,
        names: tuple[x509.GeneralName, ...] = LOCAL,
        *,
        expired: bool = False,
    ) -> Pair:
        """Make a key and a certificate for a server or client that is reached by `names`."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _begin(name, key, expired=expired).issuer_name(self.certificate.subject)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made = builder.sign(self.key, hashes.SHA256())
        folder = self.file.parent
        pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
        pair.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return pair


def _begin(name: str, key: ec.EllipticCurvePrivateKey, *, expired: bool) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now - DAY if expired else now + DAY
    builder = x509.CertificateBuilder().subject_name(_name(name)).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - 2 * DAY).not_valid_after(end)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

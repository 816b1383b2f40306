"""A certificate authority of our own, for tests."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
_BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


def pem_of(key: Any, password: bytes | None = None) -> bytes:
    """A private key in PEM."""
    encryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))


@dataclass
class Authority:
    """Signs certificates for this machine."""

    name: str = "tests"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def certificate(self, folder: Path, name: str, *, is_rsa: bool = False) -> tuple[Path, Path]:
        """Write a new key and its certificate for 127.0.0.1; gives their files."""
        key: Any = (
            rsa.generate_private_key(65_537, 2_048)
            if is_rsa
            else ec.generate_private_key(ec.SECP256R1())
        )
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
        built = self._builder(name, key.public_key()).add_extension(names, critical=False)
        signed = built.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        files = folder / f"{name}.pem", folder / f"{name}.key"
        for file, content in zip(files, (signed, pem_of(key)), strict=True):
            file.write_bytes(content)
        return files

    def root(self, folder: Path) -> Path:
        """Write its own certificate; gives the file."""
        built = self._builder(self.name, self.key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        path = folder / f"{self.name}-ca.pem"
        signed = built.sign(self.key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return path

    def _builder(self, name: str, public_key: Any) -> x509.CertificateBuilder:
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(self.name))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
        )


def client_context(root: Path, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """What a client trusts, and shows."""
    context = ssl.create_default_context(cafile=str(root))
    if own is not None:
        context.load_cert_chain(*own)
    return context

"""Certificates, keys and what goes in the clear: looked at before anybody is spoken to."""

from __future__ import annotations

import ssl
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn


def require_tls_files(
    prefix: str,
    cafile: Path | None,
    certfile: Path | None,
    keyfile: Path | None,
    password: str | None = None,
) -> None:
    """Refuse files that no TLS connection could be made with; raises ValueError, one sentence.

    The settings are called `prefix` and cafile, certfile, keyfile. Without a keyfile the key
    stands in the certfile. `password`: of the key, where it is encrypted.
    """
    if keyfile and not certfile:
        raise ValueError(f"{prefix}keyfile needs {prefix}certfile, the certificate of that key")
    if cafile:
        _require_certificates(f"{prefix}cafile", cafile)
    if certfile:
        _require_certificates(f"{prefix}certfile", certfile)
        name = f"{prefix}keyfile" if keyfile else f"{prefix}certfile"
        _require_key(name, certfile, keyfile or certfile, password)


def _require_certificates(name: str, file: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(file)
        found = context.cert_store_stats()["x509"]
    except ssl.SSLError:
        found = 0
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}") from None
    if not found:
        raise ValueError(f"{name} holds no certificate that can be read: {file} must be PEM")


def _require_key(name: str, certfile: Path, keyfile: Path, password: str | None) -> None:
    def refuse_to_ask() -> NoReturn:  # or OpenSSL would ask at the terminal
        msg = f"{name} is encrypted: {keyfile} must be a key without a passphrase"
        raise ValueError(msg)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(certfile, keyfile, password or refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            msg = f"{name} does not match: {keyfile} is not the key of {certfile}"
            raise ValueError(msg) from None
        msg = f"{name} holds no private key that can be read: {keyfile} must be PEM"
        raise ValueError(msg) from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}") from None


def is_loopback(host: str) -> bool:
    """Say whether what goes to `host`, a name or an address, stays on this machine."""
    name = host.strip("[]").lower().rstrip(".")
    with suppress(ValueError):
        return ip_address(name).is_loopback
    return name == "localhost" or name.endswith(".localhost")

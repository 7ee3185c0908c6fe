"""Certificates that are trusted beside those of the system."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from domyn_swarm.errors import ConfigError

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def certificates(ca_file: str) -> list[bytes]:
    """Those of a file, each by itself.

    Raises:
        ConfigError: they cannot be used.
    """
    trusting(ca_file)  # raises if the file is unusable
    return _CERTIFICATE.findall(Path(ca_file).read_bytes())


def trusting(ca_file: str) -> ssl.SSLContext:
    """An SSL context that trusts the system's certificates and those of a file.

    Raises:
        ConfigError: they cannot be used.
    """
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:  # includes SSLError
        raise ConfigError(
            f"The endpoint's certificates in {ca_file} cannot be used: {error}.",
            hint="router.tls_ca, or router.tls_cert, names a file of certificates in PEM that the "
            "job's nodes can read.",
        ) from error
    return context

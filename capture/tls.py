"""HTTPS of inferlake's own servers: what its clients trust, which certificates can be used."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

END = "-----END CERTIFICATE-----"


class Unusable(Exception):
    """A certificate or its key cannot be used; the message is one sentence that names the file."""


def trust(certificate: Path | None) -> ssl.SSLContext:
    """For clients of the server. With `certificate` (PEM) that one alone is trusted, by whatever
    name the server is called: our own processes on its machine call it 127.0.0.1. Else what the
    system trusts, by its name. Raises Unusable."""
    if certificate is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cadata=_first(certificate))
    context.check_hostname = False
    # The certificate itself ends the chain, whoever issued it.
    context.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def no_answer(url: str, error: BaseException) -> str:
    """What a command says that could not reach the server, in one sentence."""
    why = _distrust(error)
    if why is not None:
        return (
            f"The certificate of {url} is not trusted ({why}); ask the server by the name in it, "
            "or set INFERLAKE_TLS_CERTIFICATE to a copy of it."
        )
    return f"No server answers at {url}; start one with `inferlake up`, or set INFERLAKE_URL."


def _distrust(error: BaseException) -> str | None:
    """Why a server was not believed to be who it should be, if that is why a call failed."""
    seen: BaseException | None = error
    while seen is not None:
        reason = getattr(seen, "reason", None)  # urllib's
        for one in (seen, reason):
            if isinstance(one, ssl.SSLCertVerificationError):
                return one.verify_message
        seen = seen.__cause__ or seen.__context__
    return None


def check(certificate: Path, key: Path) -> None:
    """Raises Unusable unless this is a certificate (PEM, with its chain) and its private key."""
    expires = expires_at(certificate)
    if expires <= datetime.now(UTC):
        raise Unusable(f"The certificate {certificate} expired on {expires:%Y-%m-%d %H:%MZ}.")
    try:
        key.read_bytes()
        # A key under a password would be asked for on the terminal; there is none to answer.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: b"")
    except ssl.SSLError as error:
        said = (error.reason or "unknown format").lower().replace("_", " ")
        raise Unusable(
            f"{key} is no unencrypted private key (PEM) of the certificate {certificate}: {said}."
        ) from None
    except OSError as error:
        raise Unusable(f"{key} cannot be read: {error.strerror}.") from None


def expires_at(certificate: Path) -> datetime:
    """When the server's certificate, the first in its file, is no longer valid. Raises Unusable."""
    try:
        return x509.load_pem_x509_certificate(_first(certificate).encode()).not_valid_after_utc
    except ValueError:
        raise Unusable(f"{certificate} holds no certificate in PEM form.") from None


def _first(certificate: Path) -> str:
    try:
        text = certificate.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise Unusable(f"{certificate} cannot be read: {error.strerror}.") from None
    first, end, _ = text.partition(END)
    if not end:
        raise Unusable(f"{certificate} holds no certificate in PEM form.")
    return first + end

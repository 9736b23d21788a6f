"""Secrets at rest: sealed with a key from the environment, else from a 0600 file outside of the
database."""

import base64
import binascii
import os
from pathlib import Path

from cryptography import fernet
from pydantic import SecretStr

from capture import errors, logline
from capture.settings import Settings

KEY_FILE = "secret-key"
KEY_BYTES = 32


def encrypt(settings: Settings, text: str) -> str:
    """Seal a secret (Fernet: AES-128-CBC with HMAC-SHA256); the result is printable ASCII."""
    return _present(settings).encrypt(text.encode()).decode("ascii")


def decrypt(settings: Settings, sealed: str) -> str:
    """Open a sealed secret. Raises InternalError when a key sealed it that is not known here."""
    keys = fernet.MultiFernet([_present(settings), *_earlier(settings)])
    try:
        return keys.decrypt(sealed.encode("ascii")).decode()
    except fernet.InvalidToken:
        found = "the key file does" if settings.secret_key is None else "INFERLAKE_SECRET_KEY does"
        raise errors.InternalError(
            f"A stored secret cannot be opened: {found} not belong to this database; give the key "
            "that sealed it as INFERLAKE_SECRET_KEY_BEFORE, or write the secret again."
        ) from None


def renewed(settings: Settings, sealed: str) -> str | None:
    """What an earlier key sealed, sealed with the present one; None: that one sealed it. Raises
    InternalError as `decrypt`."""
    try:
        _present(settings).decrypt(sealed.encode("ascii"))
    except fernet.InvalidToken:
        return encrypt(settings, decrypt(settings, sealed))
    return None


def check(settings: Settings) -> None:
    """Raises InvalidParameter when a key of the settings is none."""
    for name in ("secret_key", "secret_key_before"):
        if getattr(settings, name) is not None:
            _given(name, getattr(settings, name))


def _present(settings: Settings) -> fernet.Fernet:
    if settings.secret_key is not None:
        return _given("secret_key", settings.secret_key)
    path = settings.data_dir.absolute() / KEY_FILE
    if not path.exists():
        _make(path)
    return _stored(path)


def _earlier(settings: Settings) -> list[fernet.Fernet]:
    """Keys that sealed what was written before the present one: the one given, and the file's."""
    found = []
    if settings.secret_key_before is not None:
        found.append(_given("secret_key_before", settings.secret_key_before))
    path = settings.data_dir.absolute() / KEY_FILE
    if settings.secret_key is not None and path.exists():
        found.append(_stored(path))
    return found


def _stored(path: Path) -> fernet.Fernet:
    return fernet.Fernet(path.read_bytes().strip())


def _given(name: str, key: SecretStr) -> fernet.Fernet:
    """A key of the settings, in either alphabet of base64. Raises InvalidParameter."""
    text = key.get_secret_value().strip()
    logline.hide(text)
    try:
        raw = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise errors.InvalidParameter(
            f"INFERLAKE_{name.upper()} must be {KEY_BYTES} bytes in base64, 44 characters, as "
            "`openssl rand -base64 32` prints them."
        )
    return fernet.Fernet(base64.urlsafe_b64encode(raw))


def _make(path: Path) -> None:
    # Several processes may come here at once: each writes a file of its own, and the link, which
    # fails when the name is taken, lets one of them win with its key complete and on disk.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{KEY_FILE}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(fernet.Fernet.generate_key())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()

"""Secrets at rest: sealed with a key that lies in a 0600 file outside of the database."""

import os
from pathlib import Path

from cryptography import fernet

from capture import errors
from capture.settings import Settings

KEY_FILE = "secret-key"


def encrypt(settings: Settings, text: str) -> str:
    """Seal a secret (Fernet: AES-128-CBC with HMAC-SHA256); the result is printable ASCII."""
    return fernet.Fernet(_key(settings)).encrypt(text.encode()).decode("ascii")


def decrypt(settings: Settings, sealed: str) -> str:
    """Open a sealed secret. Raises InternalError when another key sealed it."""
    try:
        return fernet.Fernet(_key(settings)).decrypt(sealed.encode("ascii")).decode()
    except fernet.InvalidToken:
        raise errors.InternalError(
            "A stored secret cannot be opened: the key file does not belong to this database."
        ) from None


def _key(settings: Settings) -> bytes:
    path = settings.data_dir.absolute() / KEY_FILE
    if not path.exists():
        _make(path)
    return path.read_bytes().strip()


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

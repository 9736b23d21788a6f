"""Secrets of users: sealed in the database, opened at the last moment."""

import re
from collections.abc import Mapping

import sqlalchemy as sa

from capture import errors, sealing
from capture.settings import Settings
from serving import providers, secret_state


def put(
    connection: sa.Connection, settings: Settings, scope: str, key: str, text: str, now_ms: int
) -> None:
    """Seal a secret and write it."""
    sealed = sealing.encrypt(settings, text).encode("ascii")
    secret_state.put_secret(connection, scope, key, sealed, now_ms)


def get(connection: sa.Connection, settings: Settings, scope: str, key: str) -> str:
    """Open a secret. Raises DoesNotExist."""
    sealed = secret_state.sealed_secret(connection, scope, key)
    if sealed is None:
        raise errors.DoesNotExist(f"Secret '{scope}/{key}' does not exist.")
    return sealing.decrypt(settings, sealed.decode("ascii"))


def resolve(connection: sa.Connection, settings: Settings, text: str) -> str:
    """`text` with every {{secrets/scope/key}} in it opened. Raises DoesNotExist."""

    def opened(reference: re.Match[str]) -> str:
        return get(connection, settings, reference[1], reference[2])

    return providers.SECRET.sub(opened, text)


def resolve_all(
    connection: sa.Connection, settings: Settings, variables: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables of an entity, as its worker gets them. Raises DoesNotExist."""
    return {name: resolve(connection, settings, text) for name, text in variables.items()}

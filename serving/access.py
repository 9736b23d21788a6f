"""Who may do what. Pure: tokens, grants and times are given.

A token is looked up by its public id and compared, as SHA-256, in constant time. The bootstrap
administrator's token and the service token have no id: their whole hash is compared. An endpoint on
which a caller has no grant does not exist for them.
"""

import hashlib
import hmac
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from capture import errors
from serving import contract

Level = Literal["CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"]
LEVELS: tuple[Level, ...] = ("CAN_VIEW", "CAN_QUERY", "CAN_MANAGE")
EVERYBODY = "group:users"
MOST_ADDRESSES = 10_000

_TOKEN = re.compile(r"il_([0-9a-f]{16})_[A-Za-z0-9_-]{43}", re.ASCII)
_NOTHING = bytes(32)


class KnownToken(Protocol):
    """What is known of a token. expires_ms: unix ms, None for never."""

    @property
    def user(self) -> str: ...
    @property
    def hash(self) -> bytes: ...
    @property
    def expires_ms(self) -> int | None: ...


class Directory(Protocol):
    """The part of a snapshot that access depends on."""

    @property
    def tokens(self) -> Mapping[str, KnownToken]: ...
    @property
    def grants(self) -> Mapping[tuple[str, str], str]: ...
    @property
    def admins(self) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. token_id: of the token used, None for bootstrap and service tokens."""

    user: str
    is_admin: bool
    is_service: bool
    token_id: str | None = None


def token_hash(text: str) -> bytes:
    """SHA-256 of a token's or code's whole text: what is stored of it."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def token_text(token_id: str, secret: str) -> str:
    """Text of a token: 16 hexadecimal digits of id, 43 characters base64url of secret."""
    return f"il_{token_id}_{secret}"


def identify(
    header: str | None,
    directory: Directory,
    admin_hash: bytes | None,
    service_hash: bytes | None,
    now_ms: int,
) -> Caller:
    """Caller of a request with this Authorization header. now_ms: unix ms, for the expiry.

    Raises Unauthenticated without a token, PermissionDenied for one that is not valid."""
    text = bearer(header)
    digest = token_hash(text)
    if hmac.compare_digest(digest, admin_hash or _NOTHING) and admin_hash:
        return Caller(contract.ADMIN_USER, True, False)
    if hmac.compare_digest(digest, service_hash or _NOTHING) and service_hash:
        return Caller(contract.SERVICE_USER, True, True)
    shape = _TOKEN.fullmatch(text)
    known = directory.tokens.get(shape[1]) if shape else None
    matches = hmac.compare_digest(digest, known.hash if known else _NOTHING)
    expired = known is not None and known.expires_ms is not None and known.expires_ms <= now_ms
    if known is None or shape is None or not matches or expired:
        raise errors.PermissionDenied("The token is not valid.")
    return Caller(known.user, known.user in directory.admins, False, shape[1])


def bearer(header: str | None) -> str:
    """The token in an Authorization header. Raises Unauthenticated."""
    scheme, _, text = (header or "").partition(" ")
    text = text.strip(" ")
    if scheme.lower() != "bearer" or not text:
        raise errors.Unauthenticated("Send 'Authorization: Bearer <token>'.")
    return text


def level(caller: Caller, endpoint_id: str, directory: Directory) -> Level | None:
    """Highest right of a caller on an endpoint; None: it does not exist for them."""
    if caller.is_admin:
        return "CAN_MANAGE"
    granted = {directory.grants.get((endpoint_id, who)) for who in (caller.user, EVERYBODY)}
    return next((each for each in reversed(LEVELS) if each in granted), None)


def require(
    caller: Caller, endpoint_id: str, endpoint_name: str, needed: Level, directory: Directory
) -> Level:
    """The caller's right on an endpoint, at least `needed`.

    Raises DoesNotExist for an endpoint without any grant, PermissionDenied for too small a one."""
    found = level(caller, endpoint_id, directory)
    if found is None:
        raise errors.DoesNotExist(f"Endpoint '{endpoint_name[:200]}' does not exist.")
    if LEVELS.index(found) < LEVELS.index(needed):
        raise errors.PermissionDenied(
            f"{needed} on endpoint '{endpoint_name}' is needed; you have {found}."
        )
    return found


def require_admin(caller: Caller) -> None:
    """Raises PermissionDenied unless the caller is an administrator."""
    if not caller.is_admin:
        raise errors.PermissionDenied("Only an administrator may do this.")


class FailedLogins:
    """Counts wrong tokens per address in a bucket that refills evenly. A missing token is none, and
    a valid one always passes: ask only after a token was found to be wrong."""

    def __init__(self, per_minute: int) -> None:
        self._most = float(per_minute)
        # By use, the one unused for longest first. A plain dict would do but for its time: it finds
        # its first entry by walking over all those that were taken out before.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def count(self, address: str, now: float) -> None:
        """One more wrong token. now: monotonic seconds. Raises RequestLimitExceeded."""
        left, since = self._left.get(address, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / 60)
        if left >= 1:
            self._remember(address, left - 1, now)
            return
        self._remember(address, left, now)
        refusal = errors.RequestLimitExceeded(
            f"Over {int(self._most)} wrong tokens per minute from this address."
        )
        refusal.retry_after = max(1, math.ceil((1 - left) * 60 / self._most))
        raise refusal

    def _remember(self, address: str, left: float, now: float) -> None:
        self._left[address] = (left, now)
        self._left.move_to_end(address)
        if len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)


class Door:
    """Authentication of one process: its two bootstrap tokens and its count of failed logins."""

    def __init__(
        self, admin_token: str | None, service_token: str | None, failed_logins_per_minute: int
    ) -> None:
        self._admin_hash = token_hash(admin_token) if admin_token else None
        self._service_hash = token_hash(service_token) if service_token else None
        self._failed = FailedLogins(failed_logins_per_minute)

    def caller(
        self, header: str | None, address: str, directory: Directory, now_ms: int, now: float
    ) -> Caller:
        """Who knocks. now: monotonic seconds, for the limit; now_ms: unix ms, for the expiry.

        Raises Unauthenticated, PermissionDenied, RequestLimitExceeded."""
        try:
            return identify(header, directory, self._admin_hash, self._service_hash, now_ms)
        except errors.PermissionDenied:
            self.failed(address, now)
            raise

    def failed(self, address: str, now: float) -> None:
        """One more wrong token or code. Raises RequestLimitExceeded over the limit."""
        self._failed.count(address, now)

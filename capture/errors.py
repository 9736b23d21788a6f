"""A class per row of the error table, and the envelope they travel in. Pure."""

import re
from typing import Any

MAX_MESSAGE_CHARACTERS = 2_000
# Databricks' SDK retries for five minutes whatever error holds one of these in its message, in this
# case of letters: a 400 with what a model raised must not be one.
_RETRIED = re.compile(
    r"UnknownWorkerEnvironmentException|does not have any associated worker environments"
    r"|There is no worker environment with id|Unknown worker environment|ClusterNotReadyException"
    r"|Unexpected error|Please try again later or try a faster operation\."
    r"|RPC token bucket limit has been exceeded"
)


class InferlakeError(Exception):
    """Base of every error that a caller can meet; the class fixes status and code.

    The message is one sentence: the field or thing, what was found, what is allowed.
    It never holds a stack trace, path, SQL or secret.
    """

    status = 500
    error_code = "INTERNAL_ERROR"
    retry_after: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(InferlakeError):
    """A query that cannot be answered as it is."""

    status, error_code = 400, "BAD_REQUEST"


class InvalidParameter(InferlakeError):
    """A field of a configuration or control call that breaks its rule."""

    status, error_code = 400, "INVALID_PARAMETER_VALUE"


class AlreadyExists(InferlakeError):
    """The name is taken."""

    status, error_code = 400, "RESOURCE_ALREADY_EXISTS"


class Unauthenticated(InferlakeError):
    """No token came with the request."""

    status, error_code = 401, "UNAUTHENTICATED"


class PermissionDenied(InferlakeError):
    """The token is not valid, or its user has no grant for this."""

    status, error_code = 403, "PERMISSION_DENIED"


class DoesNotExist(InferlakeError):
    """An endpoint, entity, model, version or id that is not there."""

    status, error_code = 404, "RESOURCE_DOES_NOT_EXIST"


class RouteNotFound(InferlakeError):
    """No such route."""

    status, error_code = 404, "ENDPOINT_NOT_FOUND"


class MethodNotAllowed(InferlakeError):
    """The route does not offer this method."""

    status, error_code = 405, "ENDPOINT_NOT_FOUND"


class Conflict(InferlakeError):
    """Somebody else changed it meanwhile, or an update is running."""

    status, error_code = 409, "RESOURCE_CONFLICT"


class RequestLimitExceeded(InferlakeError):
    """A configured rate limit is used up."""

    status, error_code, retry_after = 429, "REQUEST_LIMIT_EXCEEDED", 1


class QueueFull(InferlakeError):
    """More requests wait for an entity than its queue holds; nothing was started."""

    status, error_code, retry_after = 429, "RESOURCE_EXHAUSTED", 1


class InternalError(InferlakeError):
    """Our own fault, or an answer that cannot be encoded."""


class NotImplementedHere(InferlakeError):
    """Known to the contract, not offered by this server."""

    status, error_code = 501, "NOT_IMPLEMENTED"


class Unavailable(InferlakeError):
    """No replica just now; worth a retry."""

    status, error_code, retry_after = 503, "TEMPORARILY_UNAVAILABLE", 1


class LogFull(InferlakeError):
    """The write-ahead log takes no more; worth a retry."""

    status, error_code, retry_after = 503, "RESOURCE_EXHAUSTED", 5


class ModelTimeout(InferlakeError):
    """The model did not answer within its time."""

    status, error_code = 504, "DEADLINE_EXCEEDED"


def envelope(error: InferlakeError) -> dict[str, Any]:
    """Body of an error reply."""
    message = _RETRIED.sub(lambda found: found[0][0].swapcase() + found[0][1:], error.message)
    return {"error_code": error.error_code, "message": message[:MAX_MESSAGE_CHARACTERS]}


def headers(error: InferlakeError) -> dict[str, str]:
    """Headers that belong to an error reply: `Retry-After` in whole seconds, where it helps."""
    return {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}

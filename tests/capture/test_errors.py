"""What an error tells a client."""

import pytest
from databricks.sdk import errors as sdk_errors
from databricks.sdk._base_client import _BaseClient

from capture import errors


@pytest.mark.parametrize(
    "words",
    [
        "Unexpected error",
        "ClusterNotReadyException",
        "There is no worker environment with id 7",
        "Workspace does not have any associated worker environments",
        "Unknown worker environment",
        "com.databricks.backend.manager.util.UnknownWorkerEnvironmentException",
        "Please try again later or try a faster operation.",
        "RPC token bucket limit has been exceeded",
    ],
)
def test_what_a_model_raised_makes_no_client_retry(words: str) -> None:
    """The SDK's own rule is asked, with an error as it would have read it."""
    told = errors.envelope(errors.BadRequest(f"The model raised RuntimeError: {words}: x"))
    assert _BaseClient._is_retryable(sdk_errors.BadRequest(words)) is not None
    assert _BaseClient._is_retryable(sdk_errors.BadRequest(told["message"])) is None
    assert words.lower() in told["message"].lower()


def test_a_message_is_at_most_2_000_characters() -> None:
    assert len(errors.envelope(errors.BadRequest("x" * 5_000))["message"]) == 2_000

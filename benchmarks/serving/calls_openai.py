"""OpenAI's client against the paths of language models: known, checked, and told as not offered."""

import sys
from typing import Any

import calls
import openai

url, token, _ = calls.arguments()
client = openai.OpenAI(base_url=f"{url}/serving-endpoints", api_key=token, max_retries=0)
MESSAGES: Any = [{"role": "user", "content": "hello"}]


def fails(wanted: int, call: Any, text: str) -> None:
    """Raises AssertionError if the call does not fail with this status and text."""
    try:
        call()
    except openai.APIStatusError as error:
        calls.check(error.status_code, wanted, str(error)[:200])
        assert text in str(error), error
        return
    raise AssertionError(f"expected {wanted}, found an answer")


def chat_completions() -> None:
    call = client.chat.completions.create
    fails(501, lambda: call(model="m", messages=MESSAGES), "not offered")
    fails(501, lambda: call(model="m", messages=MESSAGES, stream=True), "not offered")
    fails(400, lambda: call(model="", messages=MESSAGES), "model")


def completions() -> None:
    fails(501, lambda: client.completions.create(model="m", prompt="hello"), "not offered")


def embeddings() -> None:
    fails(501, lambda: client.embeddings.create(model="m", input=["hello"]), "not offered")


def responses() -> None:
    fails(501, lambda: client.responses.create(model="m", input="hello"), "not offered")


def errors_by_class() -> None:
    wrong = openai.OpenAI(base_url=f"{url}/serving-endpoints", api_key="x", max_retries=0)
    try:
        wrong.chat.completions.create(model="m", messages=MESSAGES)
    except openai.PermissionDeniedError:
        pass
    else:
        raise AssertionError("a wrong token was let in")
    fails(404, lambda: client.models.list(), "No route")


if __name__ == "__main__":
    listed = (chat_completions, completions, embeddings, responses, errors_by_class)
    sys.exit(calls.run([(each.__name__, each) for each in listed]))

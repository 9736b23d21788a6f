"""Hidden values are in no line, however they are printed."""

import json

import pytest

from capture import logline


def test_a_hidden_value_is_masked_in_every_form(capfd: pytest.CaptureFixture[str]) -> None:
    secret = 'p"ss\\w\u00f6rd\t1'
    logline.hide(secret)
    assert logline.mask(f"say {secret}!") == "say ***!"
    assert logline.mask(json.dumps({"a": secret})) == '{"a": "***"}'
    assert logline.mask(repr([secret])) == "['***']"
    logline.logger("t").info("said", text=secret)
    assert json.loads(capfd.readouterr().err)["text"] == "***"


def test_each_line_of_a_hidden_value_is_masked_and_the_longest_value_first() -> None:
    logline.hide("first-line-of-it\nsecond-line-of-it")
    assert logline.mask("> second-line-of-it") == "> ***"
    logline.hide("abcdefgh")
    logline.hide("abcdefgh-and-more")
    assert logline.mask("abcdefgh-and-more abcdefgh") == "*** ***"


def test_short_values_are_left() -> None:
    logline.hide("secret7")
    assert logline.mask("secret7") == "secret7"

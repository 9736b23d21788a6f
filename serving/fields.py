"""A JSON value and its place: its parts checked one by one, each refusal naming the field. Pure."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from capture import errors

Choice = TypeVar("Choice", bound=str)
SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Field:
    """A value with the path that leads to it; a null part of an object counts as absent."""

    value: Any
    where: str

    def refuse(self, expected: str) -> errors.InvalidParameter:
        """The error to raise: the field, what is allowed, what was found."""
        return errors.InvalidParameter(
            f"{self.where or 'body'}: expected {expected}, found {shown(self.value)}."
        )

    def path(self, key: str) -> str:
        """Where a part of this object lies."""
        return f"{self.where}.{key}" if self.where else key

    def get(self, key: str) -> "Field | None":
        """A part of an object, or None if it is absent or null."""
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        found = self.value.get(key)
        return None if found is None else Field(found, self.path(key))

    def need(self, key: str) -> "Field":
        """A part of an object that must be there."""
        found = self.get(key)
        if found is None:
            raise errors.InvalidParameter(f"{self.path(key)}: a value is needed, found none.")
        return found

    def only(self, allowed: Collection[str]) -> "Field":
        """This object, if it has no other keys than those."""
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        for key in self.value:
            if key not in allowed:
                raise errors.InvalidParameter(
                    f"{self.path(key[:100])}: unknown field; allowed: {', '.join(allowed)}."
                )
        return self

    def items(self, most: int | None = None) -> list["Field"]:
        """The parts of a list."""
        if not isinstance(self.value, list):
            raise self.refuse("a list")
        if most is not None and len(self.value) > most:
            raise errors.InvalidParameter(
                f"{self.where}: expected at most {most} items, found {len(self.value)}."
            )
        return [Field(each, f"{self.where}[{i}]") for i, each in enumerate(self.value)]

    def pairs(self, most: int) -> list[tuple[str, "Field"]]:
        """The parts of an object whose keys are free; null parts included."""
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        if len(self.value) > most:
            raise errors.InvalidParameter(
                f"{self.where}: expected at most {most} entries, found {len(self.value)}."
            )
        return [(key, Field(value, self.path(key))) for key, value in self.value.items()]

    def text(self, most: int, least: int = 1) -> str:
        """A string of `least` to `most` characters, without control characters but tab, newline."""
        value = self.value
        if not isinstance(value, str):
            raise self.refuse("a string")
        if not least <= len(value) <= most:
            raise errors.InvalidParameter(
                f"{self.where}: expected {least} to {most} characters, found {len(value)}."
            )
        if any(ord(c) < 32 and c not in "\t\n\r" for c in value):
            raise self.refuse("text without control characters")
        return value

    def line(self, most: int) -> str:
        """A string of 1 to `most` characters on one line: it may become part of a header."""
        value = self.text(most)
        if any(c in "\t\n\r" for c in value):
            raise self.refuse("one line of text")
        return value

    def matching(self, pattern: re.Pattern[str], expected: str) -> str:
        """A string that the whole pattern fits."""
        if not isinstance(self.value, str) or not pattern.fullmatch(self.value):
            raise self.refuse(expected)
        return self.value

    def integer(self, low: int, high: int | None = None) -> int:
        """A whole number low..high; 1.0 and true are none."""
        value = self.value
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
        if not fits or (high is not None and value > high):
            most = f"{low}..{high}" if high is not None else f"from {low} on"
            raise self.refuse(f"an integer {most}")
        return value

    def number(self, low: float, high: float) -> float:
        """A number low..high."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refuse(f"a number {low:g}..{high:g}")
        if not low <= value <= high:
            raise self.refuse(f"a number {low:g}..{high:g}")
        return float(value)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.refuse("true or false")
        return self.value

    def choice(self, allowed: Iterable[Choice]) -> Choice:
        """One of a few strings."""
        for each in allowed:
            if self.value == each:
                return each
        raise self.refuse(f"one of {', '.join(allowed)}")


def body(value: Any) -> Field:
    """The body of a request, which must be an object."""
    root = Field(value, "")
    if not isinstance(value, dict):
        raise root.refuse("an object")
    return root


def shown(value: Any) -> str:
    """A value as an error message shows it: JSON, cut; objects and lists by kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + "..."
    return f"the string {text}" if isinstance(value, str) else text


def text(root: Field, key: str, most: int, least: int = 1) -> str | None:
    """The text of an optional part of an object."""
    found = root.get(key)
    return found.text(most, least) if found is not None else None

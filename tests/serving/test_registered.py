"""What the registry holds is listed in pages, newest version first."""

import json
from collections.abc import Callable
from pathlib import Path

from capture.settings import Settings
from serving import registered

Register = Callable[..., Path]


def test_models_come_by_name_in_pages_and_by_a_part_of_their_name(
    settings: Settings, register: Register
) -> None:
    assert registered.models(settings, 10) == []  # nobody has registered anything yet
    for name, versions in (("main.b", 2), ("main.a", 11), ("other.C", 1)):
        for version in range(1, versions + 1):
            aliases = ("champion", "best") if version == versions else ()
            register(name, version, aliases=aliases)
    first = registered.models(settings, 2)
    assert [model.name for model in first] == ["main.a", "main.b"]
    assert [v.number for v in first[0].versions] == list(range(11, 0, -1))
    assert first[0].versions[0].aliases == ("best", "champion")
    assert [m.name for m in registered.models(settings, 2, after="main.b")] == ["other.C"]
    assert [m.name for m in registered.models(settings, 9, part="R.c")] == ["other.C"]


def test_an_example_is_given_as_it_was_logged(settings: Settings, register: Register) -> None:
    folder = register("m", 1)
    assert registered.example(folder) is None
    body = {"dataframe_split": {"columns": ["a"], "data": [[1.0]]}}
    (folder / registered.EXAMPLE).write_text(json.dumps(body))
    assert registered.example(folder) == body
    (folder / registered.EXAMPLE).write_text('"' + "x" * registered.MOST_EXAMPLE_BYTES + '"')
    assert registered.example(folder) is None

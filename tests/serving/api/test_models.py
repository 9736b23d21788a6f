"""What of the registry can be served, as routes tell it."""

from typing import Any

MODELS = "/api/1.0/models"


def test_models_are_listed_with_versions_and_aliases(server: Any) -> None:
    [found] = server.ok("GET", MODELS)["models"]
    assert found["name"] == "main.f.m"
    assert [(v["version"], v["aliases"]) for v in found["versions"]] == [
        ("3", []),
        ("2", ["champion"]),
        ("1", []),
    ]
    assert server.ok("GET", f"{MODELS}?name_contains=F.M")["models"] == [found]
    assert server.ok("GET", f"{MODELS}?name_contains=none")["models"] == []
    assert server.refused("GET", f"{MODELS}?colour=red")[0] == 400


def test_any_user_sees_what_a_version_asks_for(server: Any) -> None:
    ann = server.token("ann")
    found = server.ok("GET", f"{MODELS}/main.f.m/versions/@champion", token=ann)
    assert (found["version"], found["flavours"]) == ("2", ["python_function", "sklearn"])
    assert found["columns"] == [
        {"name": "distance", "type": "double", "required": True},
        {"name": "carrier", "type": "string", "required": False},
    ]
    assert found["example"] is None
    for missing in ("main.f.m/versions/9", "main.f.m/versions/x", "none/versions/1"):
        assert server.refused("GET", f"{MODELS}/{missing}", token=ann)[0] == 404

"""Update masks of monitors: which fields of a request replace those that are stored. Pure.

A mask is `*`, or paths of fields with commas between them. What it names is afterwards as in the
request, gone where the request lacks it; everything else stays. Source: databricks-monitoring.md,
1.2, and AIP-134 and AIP-161 (google.aip.dev).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from capture import errors
from monitors import contract
from monitors import data_quality_contract as shapes

Path = tuple[str, ...]

PROBABILITY = ("inference_log", "prediction_proba_column")
CHOICE = (
    f"allowed are *, {shapes.PROFILING} and below it {', '.join(shapes.Profiling.model_fields)}."
)


def parse(text: str | None) -> list[Path]:
    """Paths below the profiling config; `()`: all of it.

    Raises InvalidParameter that names a field that is not known or not for callers to set."""
    parts = [part.strip() for part in (text or "").split(",")]
    if not all(parts):
        raise errors.InvalidParameter(
            f"update_mask: name the fields to change, with commas between them; {CHOICE}"
        )
    return list(dict.fromkeys(_path(part) for part in parts))


def check_refresh(text: str | None) -> None:
    """The mask names fields of a refresh. Raises InvalidParameter."""
    known = [name for name in shapes.Refresh.model_fields if not name.startswith("object_")]
    for part in (text or "").split(","):
        if part.strip() not in ("*", *known):
            raise errors.InvalidParameter(
                f"update_mask: '{part[:200]}' is no field of a refresh; fields are "
                f"{', '.join(known)}."
            )


def _path(text: str) -> Path:
    first, *rest = text.split(".")
    if text == "*":
        return ()
    if first == shapes.PROFILING and rest and rest[0] in shapes.READ_ONLY:
        raise errors.InvalidParameter(f"update_mask: '{text[:200]}' is read only; {CHOICE}")
    if first != shapes.PROFILING or not _is_field(shapes.Profiling, rest):
        raise errors.InvalidParameter(
            f"update_mask: '{text[:200]}' is no field that can be changed; {CHOICE}"
        )
    return tuple(rest)


def _is_field(shape: type[pydantic.BaseModel] | None, path: Sequence[str]) -> bool:
    for name in path:
        if shape is None or name not in shape.model_fields:
            return False
        shape = _shape_of(shape.model_fields[name].annotation)
    return True


def _shape_of(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The model in `Model | None`; None for what has no fields of its own."""
    inner = getattr(annotation, "__args__", (annotation,))
    return next((t for t in inner if isinstance(t, type) and issubclass(t, contract.Shape)), None)


def apply(
    present: Mapping[str, Any], given: Mapping[str, Any], paths: Sequence[Path]
) -> dict[str, Any]:
    """The checked profiling config after an update. A kind of profile that is given by name takes
    the place of the one before. present, given: profiling configs. Raises InvalidParameter."""
    after: dict[str, Any] = copy.deepcopy(dict(present))
    for path in paths:
        if path:
            _put(after, path, _at(given, path))
        else:
            after = copy.deepcopy(dict(given))
    named = {path[0] for path in paths if path and path[0] in contract.PROFILE_TYPES}
    if any(after.get(kind) is not None for kind in named):
        after = {k: v for k, v in after.items() if k in named or k not in contract.PROFILE_TYPES}
    _keep_probability(after, present, paths)
    return shapes.checked(after)


def _at(value: Any, path: Path) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _put(target: dict[str, Any], path: Path, value: Any) -> None:
    for name in path[:-1]:
        if not isinstance(target.get(name), dict):
            target[name] = {}
        target = target[name]
    if value is None:
        target.pop(path[-1], None)
    else:
        target[path[-1]] = copy.deepcopy(value)


def _keep_probability(
    after: dict[str, Any], present: Mapping[str, Any], paths: Sequence[Path]
) -> None:
    """Databricks' clients do not know this field: only a mask that names it takes it away."""
    before, log = _at(present, PROBABILITY), after.get(PROBABILITY[0])
    if before is not None and isinstance(log, dict) and PROBABILITY not in paths:
        after[PROBABILITY[0]] = {PROBABILITY[1]: before, **log}

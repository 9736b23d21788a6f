"""Do the worker's ways ever answer otherwise than MLflow's own scoring server?

    python benchmarks/serving/scoring_differences.py [--models linear ...] [--shapes csv ...]

Twenty models (scoring_models.py) x more than a hundred shapes of a request (scoring_shapes.py):
ours through the worker's model, alone and in one call with its neighbours, MLflow's through
`mlflow.pyfunc.scoring_server.invocations`. Wanted: the same class of status and, at 200, equal
answers: alone in every bit, in a shared call within 6e-14 (BLAS). What differs by promise stands
beside the shapes, and as FAULT here, with its reason; it is counted apart. Exits 1 at any other
difference.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

warnings.simplefilter("ignore")

import mlflow.pyfunc  # noqa: E402
import scoring_models  # noqa: E402
import scoring_shapes  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.pyfunc import scoring_server  # noqa: E402

from capture import errors  # noqa: E402
from serving.gateway import bodies  # noqa: E402
from serving.worker import model as worker_model  # noqa: E402

BATCHED_TOLERANCE = 6e-14
FAULT = "promises.md: bad input never becomes a 5xx"


class Answer(NamedTuple):
    """A status, and what was answered (parsed) or why it was refused."""

    status: int
    said: Any


def by_mlflow(pyfunc: Any, shape: scoring_shapes.Shape) -> Answer:
    """The answer of MLflow's own scoring server, its exceptions turned as it turns them."""
    schema = pyfunc.metadata.get_input_schema()
    body: Any = shape.body
    if shape.content_type == scoring_shapes.JSON:
        try:
            body = body.decode()
        except UnicodeDecodeError as error:
            return Answer(400, str(error))
    try:
        found = scoring_server.invocations(body, shape.content_type, pyfunc, schema)
    except MlflowException as error:
        return Answer(error.get_http_status_code(), error.message[-300:])
    except Exception as error:  # noqa: BLE001 - as its server does
        return Answer(500, repr(error)[-300:])
    if found.status != 200:
        return Answer(found.status, found.response)
    return Answer(200, _parsed(found.response))


def by_ours(model: worker_model.Model, shape: scoring_shapes.Shape, neighbours: int) -> Answer:
    """The worker's answer; neighbours: equal requests in the same call, if they may share one."""
    try:
        content_type = bodies.content_type(shape.content_type)
        ready = [
            model.read(shape.body, content_type, alone=not neighbours)
            for _ in range(neighbours + 1)
        ]
    except errors.InferlakeError as error:
        return Answer(error.status, error.message)
    if neighbours and ready[0].shares is None:
        ready = ready[:1]
    found = model.run(ready)
    if len({one.body for one in found}) > 1 and _spread(found) > BATCHED_TOLERANCE:
        return Answer(found[0].status, [_parsed(one.body) for one in found])
    told = _parsed(found[0].body)
    return Answer(found[0].status, told if found[0].status == 200 else told["message"])


def _spread(found: Sequence[worker_model.Outcome]) -> float:
    parsed = [_parsed(one.body) for one in found]
    return 0.0 if all(equal(parsed[0], each, BATCHED_TOLERANCE) for each in parsed) else 1.0


def _parsed(text: str | bytes) -> Any:
    """JSON, in which NaN and infinities are null as we tell them."""
    return json.loads(text, parse_constant=lambda _: None)


def equal(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two answers are the same; numbers may differ by the tolerance, relative and not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            equal(one[key], other[key], tolerance) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            equal(a, b, tolerance) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, float) and isinstance(other, float) and tolerance:
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return type(one) is type(other) and one == other


def difference(truth: Answer, ours: Answer, tolerance: float) -> str | None:
    """In what the two differ; None: in nothing."""
    if truth.status // 100 != ours.status // 100:
        return f"MLflow {truth.status} {_cut(truth.said)} | ours {ours.status} {_cut(ours.said)}"
    if truth.status == 200 and not equal(truth.said, ours.said, tolerance):
        return f"MLflow {_cut(truth.said)} | ours {_cut(ours.said)}"
    return None


def _cut(said: Any) -> str:
    text = said if isinstance(said, str) else json.dumps(said)
    return " ".join(text[-160:].split()) if isinstance(said, str) else text[:160]


def allowed(shape: scoring_shapes.Shape, truth: Answer, ours: Answer) -> str | None:
    """The reason for which a difference is meant; None: it is not."""
    if truth.status >= 500 and ours.status == 400:
        return FAULT
    return shape.allowed if ours.status == 400 else None


class Seen(NamedTuple):
    """What a comparison found. meant: allowed differences by reason; ways: answers by the way that
    gave them."""

    compared: int
    differences: list[str]
    meant: Counter[str]
    ways: Counter[str]


def compare(saved: scoring_models.Saved, shapes: Sequence[str] = ()) -> Seen:
    """One model under every shape, or these."""
    pyfunc = mlflow.pyfunc.load_model(str(saved.folder), suppress_warnings=True)
    ours = worker_model.Model(saved.folder)
    compared, differences, meant = 0, [], Counter[str]()
    for shape in scoring_shapes.shapes(saved.rows):
        if shapes and shape.name not in shapes:
            continue
        truth = by_mlflow(pyfunc, shape)
        for neighbours, tolerance in ((0, 0.0), (2, BATCHED_TOLERANCE)):
            compared += 1
            answer = by_ours(ours, shape, neighbours)
            found = difference(truth, answer, tolerance)
            reason = allowed(shape, truth, answer) if found else None
            if reason is not None:
                meant[reason] += 1
            elif found is not None:
                among = f", with {neighbours} neighbours" if neighbours else ""
                differences.append(f"{saved.name}, {shape.name}{among}: {found}")
    return Seen(compared, differences, meant, ours.counts)


def measure(folder: Path, models: Sequence[str] = (), shapes: Sequence[str] = ()) -> Seen:
    """Compare models x shapes; empty: all of them."""
    logging.disable(logging.WARNING)
    total = Seen(0, [], Counter(), Counter())
    for saved in scoring_models.save_all(folder, models):
        seen = compare(saved, shapes)
        total = Seen(
            total.compared + seen.compared,
            total.differences + seen.differences,
            total.meant + seen.meant,
            total.ways + seen.ways,
        )
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME")
    parser.add_argument("--shapes", nargs="+", default=(), metavar="NAME")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
        seen = measure(Path(folder), options.models, options.shapes)
    for line in seen.differences:
        print(f"DIFFERENT {line}")
    for reason, count in seen.meant.most_common():
        print(f"meant to differ, {count} x: {reason}")
    ways = ", ".join(f"{count} by {way}" for way, count in seen.ways.most_common())
    verdict = "MISSED" if seen.differences else "met"
    print(f"{seen.compared} answers compared ({ways}): "
          f"{len(seen.differences)} differences, bar 0: {verdict}")  # fmt: skip
    return 1 if seen.differences else 0


if __name__ == "__main__":
    sys.exit(main())

"""The fast ways to a model, each proven before it is used.

    frame    typed rows -> exactly the DataFrame that MLflow would build -> the flavour's predict
    numpy    typed rows -> one array -> the flavour's predict (scikit-learn, all columns double)
    linear   typed rows -> one array -> the arithmetic of its predict (linear.py)

The proof is a probe at load: random rows of six batch sizes go in as JSON, on MLflow's own way and
on this one. The frames must be equal in values, types and order in memory, the answers in every
bit. A way that fails is not taken, and says why. The probe warms the model up, too.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pandas as pd
from mlflow.pyfunc import PyFuncModel, scoring_server

from capture import errors, logline
from serving.worker import decoding, linear, scoring

log = logline.logger(__name__)

PROVEN = "proven"
PROBE_SIZES = (1, 2, 3, 8, 33, 64)
PROBE_SEED = 20130701
PROBE_WORDS = ("a", "b", "some words", "é", "")
# The largest numbers that are on the way what they are at its end: as doubles, or as integers.
MOST_EXACT = {"float": 2**53, "integer": 2**31 - 1, "long": 2**63 - 1}

_NUMPY_TYPES: dict[str, Any] = {
    "double": np.float64,
    "float": np.float32,
    "long": np.int64,
    "integer": np.int32,
    "boolean": np.bool_,
}

Row = tuple[Any, ...]
Table = dict[str, list[Any]]


class Features(Protocol):
    """What adds looked-up columns: serving.features.online.Lookup."""

    @property
    def spec(self) -> Any: ...
    def add(self, columns: Mapping[str, list[Any]], rows: int) -> Table: ...


class ModelRaised(errors.BadRequest):
    """The model itself failed at this request: 400 by contract, yet the model's fault."""


@contextmanager
def the_models_fault() -> Iterator[None]:
    """Whatever is raised inside becomes ModelRaised. BaseException, because a native library may
    panic outside Exception and a model may call sys.exit."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise raised(error) from error


def raised(error: BaseException) -> ModelRaised:
    """What the model raised, as the error that tells it."""
    text = str(error).strip().rstrip(".")[:1_800]
    return ModelRaised(f"The model raised {type(error).__name__}{': ' if text else ''}{text}.")


class Entry:
    """The flavour's predict, and whether a call got as far as this: what fails before is the
    request's fault, what fails inside is the model's."""

    def __init__(self, predict: Any) -> None:
        functools.update_wrapper(self, predict)
        self.predict = predict
        self.entered = False
        self.keep = False
        self.seen: Any = None
        self.arguments: dict[str, Any] = {}

    def __call__(self, data: Any, **arguments: Any) -> Any:
        self.entered = True
        if self.keep:
            self.seen = data.copy() if isinstance(data, pd.DataFrame) else data
            self.arguments = arguments
        return self.predict(data, **arguments)


@dataclass(frozen=True, slots=True)
class Subject:
    """A loaded model: what the fast ways need to know of it. `columns`: its signature's."""

    pyfunc: PyFuncModel
    entry: Entry
    columns: tuple[scoring.Column, ...]
    features: Features | None
    folder: Path


class Fast:
    """Typed rows to the flavour's predict. `linear`, `numpy`, `frame`: proven, or the reason
    against; `best`: the way that is taken; `decoder`: None if neither is."""

    def __init__(self, subject: Subject, decoder: decoding.Decoder | None, reason: str) -> None:
        self.decoder = decoder
        self.linear = self.numpy = self.frame = reason
        self.best = "mlflow"
        self._engine: linear.Predict | None = None
        self._entry = subject.entry
        self._features = subject.features
        self._columns = subject.columns
        self._arguments: dict[str, Any] = {}
        self._order: Any = "F"
        self._single = _single_type(subject.columns)
        self._names = pd.Index([column.name for column in subject.columns], dtype="str")
        self._exact = tuple(
            (place, MOST_EXACT[column.kind])
            for place, column in enumerate(subject.columns)
            if column.kind in MOST_EXACT
        )

    def fits(self, rows: list[Row]) -> bool:
        """Whether the numbers are exact in the types on the way, so that the frame is MLflow's."""
        for place, most in self._exact:
            for row in rows:
                value = row[place]
                if value is not None and value is not decoding.UNSET and abs(value) > most:
                    return False
        return True

    def layout(self, row: Row) -> Hashable:
        """Equal for requests that may share a call: those with the same optional columns."""
        if self._features is None:
            return 0
        return tuple(value is decoding.UNSET for value in row)

    def look_up(self, rows: list[Row]) -> tuple[Table, Table]:
        """(all columns, the looked-up ones) of a batch; empty for a model without look-ups.

        Raises BadRequest, Unavailable."""
        if self._features is None or self.decoder is None:
            return {}, {}
        columns = zip(self.decoder.names, zip(*rows, strict=True), strict=True)
        sent = {
            name: [None if value is decoding.UNSET else value for value in values]
            for name, values in columns
            if values[0] is not decoding.UNSET
        }
        added = self._features.add(sent, len(rows))
        return {**sent, **added}, added

    def predict(self, rows: list[Row], table: Table) -> Any:
        """The model's answer on the best way. Raises BadRequest; ModelRaised."""
        build = self.build_frame if self.best == "frame" else self.build_array
        data = build(rows, table)
        with the_models_fault():
            if self._engine is not None and np.isfinite(data).all():
                return self._engine(data)
            return self._entry.predict(data, **self._arguments)

    def build_array(self, rows: list[Row], table: Table) -> Any:
        """Shape (rows, columns), in the order of memory that gave MLflow's answers. `table`: the
        columns instead of the rows, for a model with look-ups."""
        if table:
            rows = list(zip(*self._from_table(table, len(rows)), strict=True))
        return np.array(rows, dtype=self._single, order=self._order)

    def build_frame(self, rows: list[Row], table: Table) -> pd.DataFrame:
        """The DataFrame that MLflow would build of these rows."""
        if self._single is not None and not table:
            return pd.DataFrame(self.build_array(rows, table), columns=self._names, copy=False)
        values = self._from_table(table, len(rows)) if table else list(zip(*rows, strict=True))
        return pd.DataFrame(
            {
                column.name: _typed(column, given)
                for column, given in zip(self._columns, values, strict=True)
            }
        )

    def _from_table(self, table: Table, rows: int) -> Sequence[Sequence[Any]]:
        none = [None] * rows
        return [table.get(column.name, none) for column in self._columns]

    # -- the proof

    def prove(self, subject: Subject) -> None:
        """Compare the ways on random rows, and take the best that never differs."""
        samples = _samples(subject)
        subject.entry.keep = True
        try:
            self.frame = self._prove_frame(subject, samples)
            self.numpy = self._prove_numpy(subject, samples)
            self.linear = self._prove_linear(subject, samples)
        finally:
            subject.entry.keep = False
            subject.entry.seen = None
        ways = {"linear": self.linear, "numpy": self.numpy, "frame": self.frame}
        self.best = next((way for way, proof in ways.items() if proof == PROVEN), "mlflow")
        if self.best == "mlflow":
            self.decoder = None

    def _prove_frame(self, subject: Subject, samples: list[list[Row]]) -> str:
        for rows in samples:
            truth, seen, self._arguments = _by_mlflow(subject, rows)
            if seen is None:
                return f"MLflow refuses random rows: {_told(truth)}"
            frame = self.build_frame(rows, _as_table(subject, rows))
            different = _difference(seen, frame) or self._answers_differ(frame, truth)
            if different is not None:
                return f"{different} at {len(rows)} rows"
        return PROVEN

    def _prove_numpy(self, subject: Subject, samples: list[list[Row]]) -> str:
        if subject.pyfunc.loader_module != "mlflow.sklearn":
            return f"the flavour is {subject.pyfunc.loader_module}, not mlflow.sklearn"
        if self._single is not np.float64:
            return "not all columns are double"
        reason: str | None = None
        for self._order in ("F", "C"):
            reason = self._differs_as_array(subject, samples)
            if reason is None:
                return PROVEN
        self._order = "F"
        return reason or PROVEN

    def _differs_as_array(self, subject: Subject, samples: list[list[Row]]) -> str | None:
        for rows in samples:
            truth, _, self._arguments = _by_mlflow(subject, rows)
            if not truth.startswith(b"{"):
                return f"the model refuses random rows: {_told(truth)}"
            array = self.build_array(rows, _as_table(subject, rows))
            different = self._answers_differ(array, truth)
            if different is not None:
                return f"{different} at {len(rows)} rows"
        return None

    def _prove_linear(self, subject: Subject, samples: list[list[Row]]) -> str:
        if self.numpy != PROVEN:
            return f"numpy is not proven: {self.numpy}"
        wrapper = subject.pyfunc._model_impl
        engine = linear.engine(getattr(wrapper, "sklearn_model", wrapper))
        if engine is None:
            return "the model is not one of scikit-learn's linear ones"
        for rows in samples:
            array = self.build_array(rows, _as_table(subject, rows))
            predict = functools.partial(self._entry.predict, array, **self._arguments)
            if _outcome(functools.partial(engine, array)) != _outcome(predict):
                return f"answers differ at {len(rows)} rows"
        self._engine = engine
        return PROVEN

    def _answers_differ(self, data: Any, truth: bytes) -> str | None:
        ours = _outcome(lambda: self._entry.predict(data, **self._arguments))
        return None if ours == truth else "answers differ"


def fast_way(subject: Subject) -> Fast:
    """The proven fast ways of a model; without a decoder if there are none."""
    reason = _no_signature(subject)
    if reason is not None:
        return Fast(subject, None, reason)
    try:
        columns = _request_columns(subject)
        decoder = decoding.Decoder(columns, fill=subject.features is not None)
    except ValueError as error:
        return Fast(subject, None, str(error))
    fast = Fast(subject, decoder, "")
    fast.prove(subject)
    return fast


def _no_signature(subject: Subject) -> str | None:
    metadata = subject.pyfunc.metadata
    if metadata.get_input_schema() is None:
        return "the model has no signature"
    if metadata._is_signature_from_type_hint():
        return "the signature comes from type hints"
    if metadata._is_type_hint_from_example():
        return "the type hint comes from an example"
    return None if subject.columns else "the signature names no columns"


def _request_columns(subject: Subject) -> list[scoring.Column]:
    """What is decoded: the signature's columns; with look-ups also their keys, and then no column
    that a look-up gives has to be sent."""
    if subject.features is None:
        return list(subject.columns)
    lookups = subject.features.spec.lookups
    given = {output for lookup in lookups for output in lookup.outputs}
    columns = [
        scoring.Column(column.name, column.kind, column.required and column.name not in given)
        for column in subject.columns
    ]
    known = {column.name for column in columns}
    for lookup in lookups:
        for name in (*lookup.lookup_key, lookup.timestamp_key):
            if name is not None and name not in known:
                known.add(name)
                columns.append(scoring.Column(name, "any", False))
    return columns


def _single_type(columns: Sequence[scoring.Column]) -> Any:
    """The one numpy type of all columns, or None."""
    kinds = {column.kind for column in columns}
    return _NUMPY_TYPES.get(kinds.pop()) if len(kinds) == 1 else None


def _typed(column: scoring.Column, values: Sequence[Any]) -> Any:
    """A column as MLflow casts it. Raises BadRequest for a looked-up value that does not fit."""
    numpy_type = _NUMPY_TYPES.get(column.kind)
    if numpy_type is None:
        return list(values)
    try:
        if column.kind == "integer":  # as MLflow does: read as 64 bits, then cast
            return np.array(values, dtype=np.int64).astype(np.int32)
        return np.array(values, dtype=numpy_type)
    except (TypeError, ValueError, OverflowError) as error:
        found = scoring.explain({"inputs": {column.name: list(values)}}, [column])
        raise errors.BadRequest(
            found or f"Column '{column.name}' expects {column.kind}: {error}."
        ) from error


# --- the probe ------------------------------------------------------------------------------------


def _samples(subject: Subject) -> list[list[Row]]:
    random = np.random.default_rng(PROBE_SEED)
    example = _example(subject)
    pools = [(column.kind, _pool(column, example)) for column in subject.columns]
    return [
        [tuple(_draw(random, kind, pool) for kind, pool in pools) for _ in range(size)]
        for size in PROBE_SIZES
    ]


def _example(subject: Subject) -> pd.DataFrame | None:
    """The example that was logged with the model: what its text columns look like."""
    try:
        example = subject.pyfunc.metadata.load_input_example(str(subject.folder))
    except Exception as error:  # noqa: BLE001  an example is a help, not a need
        log.warning("example_not_read", error=str(error)[:200])
        return None
    return example if isinstance(example, pd.DataFrame) else None


def _pool(column: scoring.Column, example: pd.DataFrame | None) -> list[str]:
    if example is not None and column.name in example:
        found = [value for value in example[column.name] if isinstance(value, str)]
        if found:
            return found
    return list(PROBE_WORDS)


def _draw(random: np.random.Generator, kind: str, pool: list[str]) -> Any:
    if kind in ("double", "float"):
        return float(random.normal(0, 3))
    if kind in ("long", "integer"):
        return int(random.integers(0, 100))
    if kind == "boolean":
        return bool(random.integers(0, 2))
    return pool[int(random.integers(0, len(pool)))]


def _as_table(subject: Subject, rows: list[Row]) -> Table:
    """The sample rows as columns where look-ups give columns, too."""
    if subject.features is None:
        return {}
    columns = zip(subject.columns, zip(*rows, strict=True), strict=True)
    return {column.name: list(values) for column, values in columns}


def _by_mlflow(
    subject: Subject, rows: list[Row]
) -> tuple[bytes, pd.DataFrame | None, dict[str, Any]]:
    """(answer or error, the frame that the flavour was given, its other arguments)."""
    names = [column.name for column in subject.columns]
    records = [dict(zip(names, row, strict=True)) for row in rows]
    body = orjson.loads(orjson.dumps({"dataframe_records": records}))
    metadata, entry = subject.pyfunc.metadata, subject.entry
    entry.seen, entry.arguments = None, {}

    def predict() -> Any:
        parsed = scoring_server._parse_json_data(body, metadata, metadata.get_input_schema())
        return subject.pyfunc.predict(parsed.data, params=parsed.params)

    outcome = _outcome(predict)
    seen = entry.seen if isinstance(entry.seen, pd.DataFrame) else None
    return outcome, seen, entry.arguments


def _outcome(predict: Callable[[], Any]) -> bytes:
    """An answer or an exception as bytes to compare: equal bytes, equal bits."""
    try:
        return scoring.encode(scoring.plain(predict()))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  whatever it raises, it must raise it alike
        return f"{type(error).__name__}: {error}".encode("utf-8", "replace")


def _told(outcome: bytes) -> str:
    return outcome[:300].decode("utf-8", "replace")


def _difference(truth: pd.DataFrame, built: pd.DataFrame) -> str | None:
    if list(truth.columns) != list(built.columns):
        return "columns differ"
    for name in truth.columns:
        if truth[name].dtype != built[name].dtype:
            return f"column '{name}' is {built[name].dtype} instead of {truth[name].dtype}"
    if not truth.equals(built):
        return "values differ"
    ours, theirs = built.to_numpy().flags, truth.to_numpy().flags
    if (ours.f_contiguous, ours.c_contiguous) != (theirs.f_contiguous, theirs.c_contiguous):
        return "order in memory differs"
    return None

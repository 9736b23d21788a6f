"""A loaded model: read a request, answer a batch.

Several ways lead to the model: `linear`, `numpy` and `frame` (ways.py) for requests that decode
whole into the signature's types, `mlflow` for all others: MLflow's own functions from the parsed
body on, which are the truth.
"""

import io
import sys
import time
import traceback
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow.pyfunc
import numpy as np
import orjson
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from mlflow.types import DataType, Schema
from mlflow.utils import proto_json_utils

from capture import errors
from serving import wire
from serving.worker import scoring, ways

ROW_WISE = ("mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost")
MOST_ANSWER_BYTES = 64 << 20
MOST_TRACE_CHARACTERS = 8_000


class Ready:
    """A request that was read and found whole. `rows`: typed rows, or None for MLflow's way, which
    takes `data` and `params`; `form`: the parsed body it came from; `wrap`: whether the answer goes
    under `predictions`."""

    __slots__ = ("data", "form", "params", "row_count", "rows", "shares", "sides", "wrap")

    def __init__(
        self,
        sides: scoring.Sides,
        *,
        rows: list[ways.Row] | None = None,
        shares: Hashable | None = None,
        data: Any = None,
        form: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
        wrap: bool = True,
    ) -> None:
        self.sides = sides
        self.rows = rows
        self.row_count = 1 if rows is None else len(rows)
        self.shares = shares
        self.data = data
        self.form = form
        self.params = params
        self.wrap = wrap


class Outcome(NamedTuple):
    """What became of one request. `looked_up`: JSON text; times in microseconds; `cause`: what the
    model raised."""

    status: int
    body: bytes
    rows: int
    error_source: str | None = None
    looked_up: bytes | None = None
    features_us: int = 0
    predict_us: int = 0
    cause: BaseException | None = None


def refusal(error: errors.InferlakeError, source: str | None = None) -> Outcome:
    """The answer that tells an error. `source`: request, model or server; None: by the error."""
    if source is None:
        is_model = isinstance(error, ways.ModelRaised)
        source = "model" if is_model else "request" if error.status < 500 else "server"
    cause = error.__cause__ if source == "model" else None
    return Outcome(error.status, orjson.dumps(errors.envelope(error)), 0, source, cause=cause)


def failure(error: Exception) -> Outcome:
    """Our own bug at one request: told without its text, which goes into the entity's log."""
    print(stack(error), file=sys.stderr, flush=True)
    return refusal(errors.InternalError("The request met a fault of the server; the log tells it."))


def stack(error: BaseException) -> str:
    """Where the model raised it, for the entity's own log; never for an answer."""
    return "".join(traceback.format_exception(error))[-MOST_TRACE_CHARACTERS:]


class Model:
    """One model of one entity. For one thread."""

    def __init__(
        self,
        folder: Path,
        features: ways.Features | None = None,
        batch: bool | None = None,
        max_answer_bytes: int = MOST_ANSWER_BYTES,
    ) -> None:
        """Load and probe. `batch`: whether requests may share a call; None: by flavour.

        Raises whatever loading raises: the worker ends with it and its log tells why."""
        self._pyfunc = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
        self._entry = ways.Entry(self._pyfunc._predict_fn)
        self._pyfunc._predict_fn = self._entry
        self._features = features
        self._max_answer_bytes = max_answer_bytes
        self._metadata = self._pyfunc.metadata
        self._schema: Schema | None = self._metadata.get_input_schema()
        self.batches = self._may_batch(batch)
        self.columns = _columns(self._schema)
        self.counts: Counter[str] = Counter()
        self._llm_keys = self._accepted_llm_keys()
        self._fast = ways.fast_way(
            ways.Subject(self._pyfunc, self._entry, self.columns, features, folder)
        )

    @property
    def proofs(self) -> dict[str, str]:
        """Per way `proven`, or why it is not taken."""
        fast = self._fast
        return {
            "linear": fast.linear,
            "numpy": fast.numpy,
            "frame": fast.frame,
            "mlflow": ways.PROVEN,
        }

    @property
    def flavour(self) -> str:
        """The module that loaded it, `mlflow.sklearn`."""
        return str(self._pyfunc.loader_module)

    # -- reading

    def read(self, payload: bytes, content_type: int, alone: bool) -> Ready:
        """Validate a request before it joins others. Raises BadRequest."""
        if content_type == wire.JSON:
            decoder = self._fast.decoder
            typed = decoder.decode(payload) if decoder is not None else None
            if typed is not None and self._fast.fits(typed.rows):
                shares = None if alone or not self.batches else self._fast.layout(typed.rows[0])
                return Ready(typed.sides, rows=typed.rows, shares=shares)
            return self._read_general(payload)
        if content_type == wire.CSV:
            data = _read_csv(payload, None if self._features else self._schema, self.columns)
        else:
            data = _read_parquet(payload)
        return Ready(scoring.Sides(None, None), data=data)

    def _read_general(self, payload: bytes) -> Ready:
        request = scoring.parse(payload, self._llm_keys)
        try:
            data, params = self._parsed_by_mlflow(request)
        except (MlflowException, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise _unfit(error, request.data, self.columns) from error
        return Ready(
            request.sides,
            data=data,
            form=None if request.llm else request.data,
            params=params,
            wrap=not request.llm,
        )

    def _parsed_by_mlflow(self, request: scoring.General) -> tuple[Any, dict[str, Any] | None]:
        if request.llm:
            return scoring_server._split_data_and_params_for_llm_input(
                request.data, self._metadata.get_params_schema()
            )
        if self._features is not None:
            return scoring_server.infer_and_parse_data(request.data), request.params
        # MLflow takes the parameters out of the dictionary that it is given.
        body = {**request.data, "params": request.params}
        parsed = scoring_server._parse_json_data(body, self._metadata, self._schema)
        return parsed.data, parsed.params

    # -- answering

    def run(self, batch: Sequence[Ready]) -> list[Outcome]:
        """Answer requests that share a call; if that fails, each half by itself, down to single
        requests, so that a bad one fails alone. Never raises for what a request or model did."""
        try:
            if batch[0].rows is None:
                return [self._run_general(batch[0])]
            found = self._run_fast(batch)
            if found is not None:
                return found
        except errors.InferlakeError as error:
            if len(batch) == 1:
                return [refusal(error)]
        except Exception as error:  # noqa: BLE001  our own bug: one request's, not its neighbours'
            if len(batch) == 1:
                return [failure(error)]
        half = len(batch) // 2
        return self.run(batch[:half]) + self.run(batch[half:])

    def _run_fast(self, batch: Sequence[Ready]) -> list[Outcome] | None:
        """None: the model did not give one answer per row for the joined rows."""
        rows = [row for one in batch for row in one.rows or ()]
        counts = [one.row_count for one in batch]
        begun = time.perf_counter_ns()
        table, added = self._fast.look_up(rows)
        looked = time.perf_counter_ns()
        answer = scoring.plain(self._fast.predict(rows, table))
        predicted = time.perf_counter_ns()
        parts = [answer] if len(batch) == 1 else scoring.split(answer, counts)
        if parts is None:
            return None
        self.counts[self._fast.best] += len(batch)
        features_us, predict_us = (looked - begun) // 1000, (predicted - looked) // 1000
        found, start = [], 0
        for part, count in zip(parts, counts, strict=True):
            looked_up = _looked_up(added, start, start + count)
            found.append(self._answered(part, True, count, looked_up, features_us, predict_us))
            start += count
        return found

    def _run_general(self, one: Ready) -> Outcome:
        data, looked_up = one.data, None
        begun = time.perf_counter_ns()
        if self._features is not None and one.wrap:
            data, looked_up = self._join_features(self._features, data)
        looked = time.perf_counter_ns()
        answer = scoring.plain(self._predict_by_mlflow(data, one.params, one.form))
        predicted = time.perf_counter_ns()
        self.counts["mlflow"] += 1
        features_us, predict_us = (looked - begun) // 1000, (predicted - looked) // 1000
        rows = _row_count(data, answer)
        return self._answered(answer, one.wrap, rows, looked_up, features_us, predict_us)

    def _answered(
        self,
        answer: Any,
        wrap: bool,
        rows: int,
        looked_up: bytes | None,
        features_us: int,
        predict_us: int,
    ) -> Outcome:
        try:
            body = scoring.encode(answer, wrap)
        except scoring.CannotEncode as error:
            wrong = errors.InternalError(f"The model's answer cannot be encoded: {error}.")
            return refusal(wrong, "model")
        if len(body) > self._max_answer_bytes:
            wrong = errors.InternalError(
                f"The model's answer has {len(body)} bytes; {self._max_answer_bytes} are allowed."
            )
            return refusal(wrong, "model")
        return Outcome(200, body, rows, None, looked_up, features_us, predict_us)

    def _predict_by_mlflow(
        self, data: Any, params: dict[str, Any] | None, form: dict[str, Any] | None
    ) -> Any:
        """PyFuncModel.predict. Raises ModelRaised, or BadRequest if MLflow refused the request."""
        self._entry.entered = False
        try:
            return self._pyfunc.predict(data, params=params)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self._entry.entered or not isinstance(error, Exception):
                raise ways.raised(error) from error
            raise _unfit(error, form or _table(data), self.columns) from error

    def _join_features(self, features: ways.Features, data: Any) -> tuple[pd.DataFrame, Any]:
        """(the signature's columns out of the sent and the looked-up ones, looked-up JSON)."""
        try:
            frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data)
        except ValueError as error:
            raise errors.BadRequest(f"The columns do not form a table: {error}.") from error
        rows = len(frame)
        sent = {str(name): _values(frame[name]) for name in frame.columns}
        added = features.add(sent, rows)
        table = {**sent, **added}
        missing = [c.name for c in self.columns if c.required and c.name not in table]
        if missing:
            raise errors.BadRequest(f"Column '{missing[0]}' is missing.")
        wanted = {c.name: table.get(c.name, [None] * rows) for c in self.columns}
        try:
            cast = proto_json_utils.cast_df_types_according_to_schema(
                pd.DataFrame(wanted), self._schema
            )
        except MlflowException as error:
            raise _unfit(error, {"inputs": wanted}, self.columns) from error
        return cast, _looked_up(added, 0, rows)

    # -- what the model's folder says

    def _may_batch(self, batch: bool | None) -> bool:
        if batch is not None:
            return batch
        stated = (self._metadata.metadata or {}).get("inferlake_batch")
        if stated is not None:
            return bool(stated)
        row_wise = self.flavour in ROW_WISE
        return row_wise and self._metadata.flavors["python_function"].get("predict_fn") != "score"

    def _accepted_llm_keys(self) -> tuple[str, ...]:
        """Keys by which a body without a format is taken whole: all for a model without columns,
        else those that are columns."""
        if self._schema is None or not self._schema.has_input_names():
            return scoring.LLM_KEYS
        names = set(self._schema.input_names())
        return tuple(key for key in scoring.LLM_KEYS if key in names)


def _unfit(
    error: BaseException, data: dict[str, Any], columns: Sequence[scoring.Column]
) -> errors.BadRequest:
    """The message for a request that MLflow refused."""
    found = scoring.explain(data, columns) if len(data) == 1 else None
    if found is None:
        text = error.message if isinstance(error, MlflowException) else str(error)
        # MLflow repeats the whole data first; the reason comes after the last "Error:".
        text = text.rpartition("Error: ")[2].strip().strip("'").rstrip(".")
        found = f"The request does not fit the model's signature: {text[:500]}."
    return errors.BadRequest(found)


def _looked_up(added: ways.Table, start: int, end: int) -> bytes | None:
    if not added:
        return None
    part = {name: values[start:end] for name, values in added.items()}
    return scoring.encode(part, wrap=False)


def _table(data: Any) -> dict[str, Any]:
    """A frame in the form of `inputs`, for an explanation; nothing for other data."""
    if not isinstance(data, pd.DataFrame):
        return {}
    return {"inputs": {str(name): _values(column) for name, column in data.items()}}


def _row_count(data: Any, answer: Any) -> int:
    if isinstance(data, (pd.DataFrame, list)):
        return len(data)
    if isinstance(data, np.ndarray):
        return len(data) if data.ndim else 1
    return len(answer) if isinstance(answer, list) else 1


def _values(column: pd.Series) -> list[Any]:
    """A column as Python values; missing ones as None."""
    pairs = zip(column, column.isna(), strict=True)
    return [None if missing else value for value, missing in pairs]


def _columns(schema: Schema | None) -> tuple[scoring.Column, ...]:
    if schema is None or schema.is_tensor_spec() or not schema.has_input_names():
        return ()
    return tuple(
        scoring.Column(str(spec.name), _kind(spec.type), spec.required) for spec in schema.inputs
    )


def _kind(of: Any) -> str:
    return of.name if isinstance(of, DataType) else type(of).__name__.lower()


def _read_csv(payload: bytes, schema: Any, columns: Sequence[scoring.Column]) -> pd.DataFrame:
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise errors.BadRequest(f"Body is not UTF-8 at byte {error.start}.") from None
    try:
        return scoring_server.parse_csv_input(io.StringIO(text), schema)
    except MlflowException as error:
        reason = _why_not_csv(text, columns)
        raise errors.BadRequest(f"Body is not valid CSV: {reason}") from error


def _why_not_csv(text: str, columns: Sequence[scoring.Column]) -> str:
    try:
        frame = pd.read_csv(io.StringIO(text))
    except (ValueError, pd.errors.ParserError) as error:
        return f"{str(error).strip().rstrip('.')[:300]}."
    table = {str(name): _values(frame[name]) for name in frame.columns}
    return scoring.explain({"inputs": table}, columns) or "it cannot be read as a table."


def _read_parquet(payload: bytes) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(payload))
    except Exception as error:
        # pyarrow raises many kinds at broken files
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:300]
        raise errors.BadRequest(f"Body is not a valid Parquet file: {reason}.") from error

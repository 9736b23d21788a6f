"""The client that users import: feature tables, point-in-time training sets, models with features.

    fe = FeatureEngineeringClient()
    fe.create_table(name="main.flights.weather", primary_keys=["origin"], timeseries_column="hour",
                    df=weather)
    training = fe.create_training_set(
        df=flights, label="late", exclude_columns=["origin"],
        feature_lookups=[FeatureLookup("main.flights.weather", "origin", feature_names=["temp"],
                                       timestamp_lookup_key="sched_dep")])
    fe.log_model(model=model, artifact_path="model", flavor=mlflow.sklearn, training_set=training,
                 registered_model_name="main.flights.delay")

Signatures as Databricks has them; frames are polars or pandas, and what comes back is of the kind
that was given. A row of a training set sees what was known at its time: `join_asof` backward, a row
of the very time included, none older than the lookback window. Keys are compared in the types of
the table, by the rules that `capture.snapshots` has for a request's values, so both sides agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import deltalake
import polars as pl

from capture import errors, names, publisher
from capture.settings import Settings
from serving.features import joins, logged
from serving.features import spec as specs

if TYPE_CHECKING:
    import pandas as pd

    Frame = pl.DataFrame | pd.DataFrame

F = TypeVar("F", bound="Frame")  # what is given back is of the kind that came in


@dataclass(frozen=True, slots=True)
class FeatureLookup:
    """Features to take from one table. Features that are not named: all but keys and time.

    lookup_key: columns of the training frame, in the order of the table's primary keys.
    default_values: by name of the feature, for a key (or time) without a row.
    """

    table_name: str
    lookup_key: str | Sequence[str]
    feature_names: str | Sequence[str] | None = field(default=None, kw_only=True)
    rename_outputs: Mapping[str, str] | None = field(default=None, kw_only=True)
    timestamp_lookup_key: str | None = field(default=None, kw_only=True)
    lookback_window: timedelta | None = field(default=None, kw_only=True)
    default_values: Mapping[str, Any] | None = field(default=None, kw_only=True)


class TrainingSet(Generic[F]):
    """A frame and the features that belong to it; joined when first asked for."""

    def __init__(
        self,
        settings: Settings,
        frame: F,
        spec: specs.Spec,
        label: str | None,
        exclude_columns: Sequence[str],
    ) -> None:
        self.spec = spec
        self.label = label
        self.exclude_columns = tuple(exclude_columns)
        self._settings = settings
        self._given = frame

    def load_df(self) -> F:
        """The given rows in their order, with their features, less the excluded columns."""
        return _as_given(self.joined, self._given)

    @cached_property
    def joined(self) -> pl.DataFrame:
        """What `load_df` gives, as polars."""
        frame = _to_polars(self._given)
        for lookup in self.spec.lookups:
            frame = joins.join(frame, lookup, *_open(self._settings, lookup))
        return frame.drop(self.exclude_columns, strict=False)

    @property
    def model_input(self) -> pl.DataFrame:
        """What the model sees: `joined` without the label."""
        return self.joined if self.label is None else self.joined.drop(self.label)


class FeatureEngineeringClient:
    """Works on a data directory: the one of `settings`, by default of the environment."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()

    def create_table(
        self,
        *,
        name: str,
        primary_keys: str | Sequence[str],
        df: "Frame | None" = None,
        timeseries_column: str | None = None,
        schema: Mapping[str, Any] | None = None,
        description: str | None = None,
    ) -> None:
        """Create a feature table, from a frame or from a polars schema; rows of `df` are written.

        With no primary keys it is a plain Delta table, a baseline say, that cannot be looked up.
        Raises AlreadyExists; InvalidParameter where a column is missing or cannot be served, and
        where a key (and time) stands twice in `df`.
        """
        if df is None and schema is None:
            raise errors.InvalidParameter(f"Table '{name}' needs a df or a schema.")
        frame = pl.DataFrame(schema=dict(schema or {})) if df is None else _to_polars(df)
        keys = tuple(key for key in _listed(primary_keys) if key != timeseries_column)
        configuration: dict[str, str] = {}
        if keys:
            definition = publisher.Definition(keys, timeseries_column)
            publisher.check_columns(frame.schema, definition)
            _refuse_doubles(name, frame, definition)
            configuration = publisher.configuration(definition)
        path = names.table_path(self.settings.tables_root, names.table_name(name))
        if deltalake.DeltaTable.is_deltatable(path):
            raise errors.AlreadyExists(f"Table '{name}' exists already.")
        if "://" not in path:
            Path(path).mkdir(parents=True, exist_ok=True)
        arrow = _stored(frame).to_arrow()
        table = deltalake.DeltaTable.create(
            path,
            schema=arrow.schema,
            name=name,
            description=description,
            configuration=configuration,
            raise_if_key_not_exists=False,
        )
        if len(frame):
            deltalake.write_deltalake(table, arrow, mode="append")

    def write_table(self, *, name: str, df: "Frame", mode: str = "merge") -> None:
        """Write rows. merge: a key (and time) that is there is replaced, in the columns of `df`.

        append: all rows are new; faster, and refused where one is not. Raises DoesNotExist,
        InvalidParameter.
        """
        if mode not in ("merge", "append"):
            raise errors.InvalidParameter(f"mode '{mode}' is not allowed; use merge or append.")
        table, definition = publisher.open_table(self.settings, name)
        frame = _fitted(name, _to_polars(df), table, definition)
        _refuse_doubles(name, frame, definition)
        if mode == "append":
            keys = definition.identity
            known = publisher.read(table, keys)
            doubled = len(frame.join(known, on=keys, how="semi"))
            if doubled:
                raise errors.InvalidParameter(
                    f"{doubled} rows are in table '{name}' already; write them with mode merge."
                )
            deltalake.write_deltalake(table, frame.to_arrow(), mode="append")
            return
        quoted = {column: _quoted(column) for column in frame.columns}
        same = " AND ".join(f"old.{quoted[k]} = new.{quoted[k]}" for k in definition.identity)
        changed = {name: f"new.{name}" for name in quoted.values()}
        (
            table.merge(frame.to_arrow(), same, source_alias="new", target_alias="old")
            .when_matched_update(changed)
            .when_not_matched_insert(changed)
            .execute()
        )

    def read_table(self, *, name: str) -> pl.DataFrame:
        """All rows of a feature table's newest version."""
        table, _ = publisher.open_table(self.settings, name)
        return publisher.read(table)

    def publish_table(self, *, name: str) -> int:
        """Bring the online snapshot up to date now; the published version of the table."""
        return publisher.publish(self.settings, name)

    def create_training_set(
        self,
        *,
        df: F,
        feature_lookups: Sequence[FeatureLookup],
        label: str | None,
        exclude_columns: Sequence[str] = (),
    ) -> TrainingSet[F]:
        """A frame with features to be joined from the tables' present versions.

        Raises DoesNotExist, and InvalidParameter where a table, column, key or time is not there,
        or a feature would hide a column of `df`.
        """
        frame = _to_polars(df)
        if label is not None and label not in frame.columns:
            raise errors.InvalidParameter(f"Label '{label}' is not a column of df.")
        lookups, looked_up = [], {}
        for wanted in feature_lookups:
            lookup, kinds = self._resolve(wanted, frame)
            lookups.append(lookup)
            looked_up.update(kinds)
        needed = {key for one in lookups for key in (*one.lookup_key, one.timestamp_key)}
        sent = {
            name: joins.kind_of(kind)
            for name, kind in frame.schema.items()
            if name != label and (name in needed or name not in exclude_columns)
        }
        spec = specs.Spec(tuple(lookups), sent, looked_up)
        specs.check(spec)
        return TrainingSet(self.settings, df, spec, label, exclude_columns)

    def log_model(
        self,
        *,
        model: Any,
        artifact_path: str,
        flavor: Any,
        training_set: TrainingSet[Any],
        registered_model_name: str | None = None,
        infer_input_example: bool = False,
        **flavor_arguments: Any,
    ) -> Any:
        """Log a model with `feature_spec.json` in its folder, then register it; MLflow's ModelInfo.

        The MLflow signature stays the model's own: all columns that the model sees, looked-up ones
        optional, so that the file works with plain MLflow too. What a client of the endpoint has to
        send stands in the feature spec's `request_columns`; what is added, in `lookups`. The
        version is registered last, so none exists without its spec. Other arguments go to the
        flavour's `log_model`.
        """
        model_info = logged.log(
            self.settings,
            flavor,
            model,
            training_set.spec,
            lambda: training_set.model_input,
            {"name": artifact_path, **flavor_arguments},
            infer_input_example,
        )
        if registered_model_name is not None:
            version = logged.client(self.settings).register_model(
                model_info.model_uri, registered_model_name
            )
            model_info.registered_model_version = int(version.version)
        return model_info

    def _resolve(
        self, wanted: FeatureLookup, frame: pl.DataFrame
    ) -> tuple[specs.TableLookup, dict[str, str]]:
        """A lookup with every name checked, and the kinds of its output columns."""
        table, definition = publisher.open_table(self.settings, wanted.table_name)
        schema = pl.scan_delta(table).collect_schema()
        features = _features(wanted, schema, definition)
        lookup = specs.TableLookup(
            table=wanted.table_name,
            lookup_key=_listed(wanted.lookup_key),
            features=features,
            renames=dict(wanted.rename_outputs or {}),
            defaults=dict(wanted.default_values or {}),
            timestamp_key=wanted.timestamp_lookup_key,
            lookback_seconds=_lookback_seconds(wanted),
            table_version=table.version(),
        )
        _check_keys(lookup, definition, frame)
        outputs = dict(zip(lookup.outputs, features, strict=True))
        return lookup, {output: joins.kind_of(schema[name]) for output, name in outputs.items()}


def _features(
    wanted: FeatureLookup, schema: pl.Schema, definition: publisher.Definition
) -> tuple[str, ...]:
    own = definition.identity
    if wanted.feature_names is None:
        return tuple(name for name in schema if name not in own)
    for name in _listed(wanted.feature_names):
        if name not in schema or name in definition.primary_keys:
            raise errors.InvalidParameter(
                f"Table '{wanted.table_name}' has no feature '{name}'; it has "
                f"{', '.join(column for column in schema if column not in own)[:500]}."
            )
    return _listed(wanted.feature_names)


def _lookback_seconds(wanted: FeatureLookup) -> float | None:
    if wanted.lookback_window is None:
        return None
    if wanted.timestamp_lookup_key is None or wanted.lookback_window <= timedelta(0):
        raise errors.InvalidParameter(
            f"lookback_window of table '{wanted.table_name}' must be positive and needs a "
            "timestamp_lookup_key."
        )
    return wanted.lookback_window.total_seconds()


def _check_keys(
    lookup: specs.TableLookup, definition: publisher.Definition, frame: pl.DataFrame
) -> None:
    if len(lookup.lookup_key) != len(definition.primary_keys):
        raise errors.InvalidParameter(
            f"lookup_key of table '{lookup.table}' names {len(lookup.lookup_key)} columns; its "
            f"primary keys are {', '.join(definition.primary_keys)}."
        )
    if lookup.timestamp_key is not None and definition.time_column is None:
        raise errors.InvalidParameter(
            f"Table '{lookup.table}' has no time column, so timestamp_lookup_key is not allowed."
        )
    for name in filter(None, (*lookup.lookup_key, lookup.timestamp_key)):
        if name not in frame.columns:
            raise errors.InvalidParameter(f"Lookup key '{name}' is not a column of df.")
    for output in lookup.outputs:
        if output in frame.columns:
            raise errors.InvalidParameter(
                f"Feature '{output}' of table '{lookup.table}' is a column of df already; "
                "rename it with rename_outputs, or leave one of them out."
            )


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _open(
    settings: Settings, lookup: specs.TableLookup
) -> tuple[deltalake.DeltaTable, publisher.Definition]:
    """A table in the version that the lookup was made with."""
    table, definition = publisher.open_table(settings, lookup.table)
    if lookup.table_version is not None and table.version() != lookup.table_version:
        table.load_as_version(lookup.table_version)
    return table, definition


def _to_polars(frame: "Frame") -> pl.DataFrame:
    return frame if isinstance(frame, pl.DataFrame) else pl.from_pandas(frame)


def _as_given(frame: pl.DataFrame, given: F) -> F:
    return cast(F, frame if isinstance(given, pl.DataFrame) else frame.to_pandas())


def _stored(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns in types that every engine reads: times in UTC, signed integers, plain text."""
    columns = []
    for series in frame:
        kind = series.dtype
        if isinstance(kind, pl.Datetime):
            columns.append(joins.in_utc(series))
        elif kind in (pl.Categorical, pl.Enum, pl.Time):
            columns.append(series.cast(pl.String))
        elif kind.is_unsigned_integer():
            columns.append(series.cast(pl.Int64))
        else:
            columns.append(series)
    return pl.DataFrame(columns)


def _fitted(
    name: str, frame: pl.DataFrame, table: deltalake.DeltaTable, definition: publisher.Definition
) -> pl.DataFrame:
    """The frame in the types of the table. Raises InvalidParameter, naming the column."""
    schema = pl.scan_delta(table).collect_schema()
    for column in definition.identity:
        if column not in frame.columns:
            raise errors.InvalidParameter(f"Column '{column}' of table '{name}' is missing in df.")
    columns = []
    for series in _stored(frame):
        if series.name not in schema:
            raise errors.InvalidParameter(
                f"Table '{name}' has no column '{series.name}'; it has {', '.join(schema)[:500]}."
            )
        try:
            columns.append(series.cast(schema[series.name]))
        except pl.exceptions.PolarsError as error:
            raise errors.InvalidParameter(
                f"Column '{series.name}' of type {series.dtype} does not fit table '{name}', "
                f"which has {schema[series.name]}."
            ) from error
    return pl.DataFrame(columns)


def _refuse_doubles(name: str, frame: pl.DataFrame, definition: publisher.Definition) -> None:
    keys = definition.identity
    nulls = len(frame) - len(frame.drop_nulls(keys))
    if nulls:
        raise errors.InvalidParameter(
            f"{nulls} rows for table '{name}' have a null in {', '.join(keys)}."
        )
    doubled = len(frame) - frame.select(keys).n_unique() if len(frame) else 0
    if doubled:
        raise errors.InvalidParameter(
            f"{doubled} rows for table '{name}' repeat the {', '.join(keys)} of another row."
        )


def _quoted(column: str) -> str:
    """A column in a merge condition. Raises InvalidParameter for a name that ends the quote."""
    if '"' in column:
        raise errors.InvalidParameter(f"Column name {column!r} holds a quotation mark.")
    return f'"{column}"'

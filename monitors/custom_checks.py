"""Are the custom metrics of a configuration computable from its table? Of no row, only of types."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import deltalake
import polars as pl
import pyarrow as pa

from capture import errors

if TYPE_CHECKING:
    from monitors import custom_metrics

JOINED = {"label": pl.Null(), "label_time": pl.Datetime("us", "UTC")}


def check(
    config: Mapping[str, Any],
    columns: Mapping[str, pl.DataType] | None,
    metric_tables: Sequence[deltalake.DeltaTable | None],
    recorded: bool,
) -> None:
    """Raises InvalidParameter that names the metric. columns: of the monitored table; None: it
    comes later, and may have any. metric_tables: profile and drift, as far as they are there;
    recorded: the labels of the table come from beside it."""
    # Half a second that only they need.
    from monitors import custom_definitions
    from monitors import custom_metrics as metrics_of

    context = metrics_of.Context.of(config, recorded)
    metrics = custom_definitions.read(config["custom_metrics"], context)
    log = config.get("inference_log") or {}
    _check_types(metrics.types, metric_tables, log.get("model_id_col"))
    if columns is None:
        return
    late = JOINED if recorded else {}
    label = {context.label: pl.Null()} if context.label else {}
    nothing = pl.DataFrame(schema={**label, **late, **columns})
    present = {name.casefold() for name in nothing.columns}
    for number, spec in enumerate(config["custom_metrics"]):
        where = f"custom_metrics[{number}] '{spec['name']}'"
        for column in spec["input_columns"]:
            if column != metrics_of.TABLE and column not in nothing.columns:
                raise errors.InvalidParameter(
                    f"{where}: column '{column[:100]}' is not there; there are "
                    f"{', '.join(sorted(columns))[:500]}."
                )
        for key in _parts(metrics, spec["name"]):
            absent = [n for n in metrics.parts[key].columns if n.casefold() not in present]
            if absent:
                raise errors.InvalidParameter(
                    f"{where}: column '{absent[0][:100]}' is not there; there are "
                    f"{', '.join(sorted(columns))[:500]}."
                )
            try:
                metrics.parts[key].values(nothing)
            except errors.InvalidParameter as error:
                raise errors.InvalidParameter(f"{where}: {error.message}") from None


def _parts(metrics: "custom_metrics.Metrics", name: str) -> list[str]:
    """What is summed up for a metric."""
    found = (
        key for one in metrics.aggregates if one.metric == name for _, key in one.inputs.values()
    )
    return list(dict.fromkeys(found))


def _check_types(
    types: Mapping[str, pa.DataType],
    metric_tables: Sequence[deltalake.DeltaTable | None],
    model_id_col: str | None,
) -> None:
    """A column of a metric table keeps its type: a metric of before may have had another one."""
    wanted = {name.casefold(): kind for name, kind in types.items()}
    if model_id_col is not None and model_id_col.casefold() in wanted:
        raise errors.InvalidParameter(
            f"custom_metrics: '{model_id_col}' is the name of the column that tells versions."
        )
    for table in metric_tables:
        for field in table.schema().fields if table is not None else ():
            kind = wanted.get(field.name.casefold())
            if kind is None:
                continue
            ours = deltalake.Schema.from_arrow(pa.schema([(field.name, kind)])).fields[0]
            if ours.type != field.type or field.name not in types:
                raise errors.InvalidParameter(
                    f"custom_metrics: '{field.name}' stands in the metric tables already, with "
                    f"type {getattr(field.type, 'type', field.type)}; choose another name."
                )

"""A model in MLflow with its feature spec beside it. MLflow is imported late: it takes seconds."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from capture.settings import Settings
from serving.features import joins
from serving.features import spec as specs

EXPERIMENT = "inferlake"


def client(settings: Settings) -> Any:
    """The module `mlflow`, pointed at the registry of the data directory."""
    import mlflow

    if mlflow.get_tracking_uri() != settings.mlflow_uri:
        mlflow.set_tracking_uri(settings.mlflow_uri)
    return mlflow


def log(
    settings: Settings,
    flavor: Any,
    model: Any,
    spec: specs.Spec,
    model_input: Callable[[], pl.DataFrame],
    arguments: dict[str, Any],
    with_example: bool,
) -> Any:
    """Log the model, then put the spec into its folder; MLflow's ModelInfo.

    model_input: what the model sees; asked for only where a signature or an example is wanted.
    arguments: of the flavour's `log_model`.
    """
    mlflow = client(settings)
    _choose_experiment(settings, mlflow)
    if "signature" not in arguments:
        arguments = {**arguments, "signature": signature(model_input(), spec)}
    if with_example and "input_example" not in arguments:
        arguments = {**arguments, "input_example": model_input().head(5).to_pandas()}
    if flavor.__name__ == "mlflow.pyfunc":
        info = flavor.log_model(python_model=model, **arguments)
    else:
        info = flavor.log_model(model, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, specs.FILE_NAME)
        path.write_text(json.dumps(specs.written(spec), indent=1))
        mlflow.MlflowClient().log_model_artifact(info.model_id, str(path))
    return info


def _choose_experiment(settings: Settings, mlflow: Any) -> None:
    """Of the embedded MLflow an experiment whose files lie in the data directory.

    MLflow's default experiment would put them into the folder that the user happens to be in."""
    if settings.mlflow_tracking_uri or mlflow.active_run() is not None:
        return
    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        location = settings.mlflow_artifacts_dir
        location.mkdir(parents=True, exist_ok=True)
        mlflow.create_experiment(EXPERIMENT, artifact_location=location.as_uri())
    mlflow.set_experiment(EXPERIMENT)


def signature(frame: pl.DataFrame, spec: specs.Spec) -> Any:
    """MLflow signature of what the model sees; looked-up columns are optional.

    Looked-up integers are declared double: a missing one is null, which MLflow's integers refuse.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    columns: list[ColSpec | TensorSpec] = []
    for name, kind in frame.schema.items():
        optional = name in spec.looked_up_columns
        columns.append(ColSpec(_mlflow_type(kind, optional), name, required=not optional))
    return ModelSignature(inputs=Schema(columns))


def _mlflow_type(kind: pl.DataType, optional: bool) -> Any:
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    if isinstance(kind, pl.List):
        return Array(_mlflow_type(kind.inner, False))  # type: ignore[arg-type]
    known = {"double": "double", "bool": "boolean", "string": "string", "timestamp": "datetime"}
    known["int64"] = "double" if optional else "long"
    return DataType[known[joins.kind_of(kind)]]

"""The three models of the demo, trained on the flights before 1 July and logged to MLflow."""

import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import threadpoolctl
from mlflow.models import infer_signature
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from serving.demo import flights
from serving.features import FeatureEngineeringClient, FeatureLookup

MODEL_NAME = "main.flights.flight_delay"
PLANES = "main.flights.planes"
AIRPORT_HOUR = "main.flights.airport_hour"
BASELINE = "main.flights.flight_delay_baseline"

SCHEDULE_TEXT = ["carrier", "origin", "dow"]
SCHEDULE_NUMBERS = ["local_hour", "distance"]
LOOKED_UP = [*flights.AIRPORT_COLUMNS, *flights.PLANE_COLUMNS]
CHALLENGER_TEXT = [*SCHEDULE_TEXT, "dest"]
CHALLENGER_NUMBERS = [*SCHEDULE_NUMBERS, *LOOKED_UP]

# Named, since finding them out takes MLflow half a minute: it loads the model in a new process.
REQUIREMENTS = [
    f"{name}=={version(name)}" for name in ("mlflow", "scikit-learn", "numpy", "pandas")
]

LOOKUPS = [
    FeatureLookup(table_name=PLANES, lookup_key="tailnum", feature_names=flights.PLANE_COLUMNS),
    FeatureLookup(
        table_name=AIRPORT_HOUR,
        lookup_key=["origin", "hour"],
        timestamp_lookup_key="event_time",
        feature_names=[*flights.AIRPORT_COLUMNS, "as_of"],
    ),
]


def champion() -> Pipeline:
    """v1: what the schedule alone tells, in a logistic regression."""
    return make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), SCHEDULE_TEXT),
            (StandardScaler(), SCHEDULE_NUMBERS),
        ),
        LogisticRegression(max_iter=200),
    )


def challenger() -> Pipeline:
    """v2: weather, traffic and the plane as well, in boosted trees that take missing values."""
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    return make_pipeline(
        make_column_transformer((encoder, CHALLENGER_TEXT), remainder="passthrough"),
        HistGradientBoostingClassifier(
            max_iter=60,
            max_leaf_nodes=8,
            categorical_features=list(range(len(CHALLENGER_TEXT))),
            early_stopping=False,
            random_state=0,
        ),
    )


def careless() -> Pipeline:
    """v3: v2's columns in a logistic regression that was never shown a missing value."""
    return make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), CHALLENGER_TEXT),
            (StandardScaler(), CHALLENGER_NUMBERS),
        ),
        LogisticRegression(max_iter=200),
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted version: its columns, the rows it was trained on and its AUC on these very rows."""

    version: str
    pipeline: Pipeline
    columns: list[str]
    rows: int
    auc: float
    seconds: float


def matrix(rows: pl.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The frame a pipeline takes: text as objects, numbers as doubles, missing as NaN."""
    return pd.DataFrame(
        {
            name: rows[name].to_numpy() if rows[name].dtype.is_numeric() else rows[name].to_list()
            for name in columns
        }
    )


def fit(pipeline: Pipeline, columns: list[str], rows: pl.DataFrame) -> BaseEstimator:
    """Fit on rows with a label (`late`, 0 or 1). Gives the fitted pipeline."""
    return pipeline.fit(matrix(rows, columns), rows["late"].to_numpy().astype(int))


def score(pipeline: Any, columns: list[str], rows: pl.DataFrame) -> np.ndarray:
    """Probability of "late" per row, shape (rows,)."""
    return pipeline.predict_proba(matrix(rows, columns))[:, 1]


def training_rows(client: FeatureEngineeringClient, everything: pl.DataFrame) -> pl.DataFrame:
    """Labelled flights before 1 July with their features joined as of the request."""
    labelled = everything.filter(
        pl.col("event_time") < flights.TRAINING_END, pl.col("late").is_not_null()
    )
    return client.create_training_set(df=labelled, feature_lookups=LOOKUPS, label="late").load_df()


def train(rows: pl.DataFrame) -> dict[str, Trained]:
    """Fit the three versions. v3 keeps the rows without a missing value only, and never says so."""
    complete = rows.drop_nulls(CHALLENGER_NUMBERS)
    plan = {
        "v1": (champion(), [*SCHEDULE_TEXT, *SCHEDULE_NUMBERS], rows),
        "v2": (challenger(), [*CHALLENGER_TEXT, *CHALLENGER_NUMBERS], rows),
        "v3": (careless(), [*CHALLENGER_TEXT, *CHALLENGER_NUMBERS], complete),
    }
    return {name: _trained(name, *parts) for name, parts in plan.items()}


def _trained(name: str, pipeline: Pipeline, columns: list[str], rows: pl.DataFrame) -> Trained:
    begun = time.monotonic()
    # One thread: on two busy cores two OpenMP threads wait for each other, 21 s instead of 2 s.
    with threadpoolctl.threadpool_limits(1):
        fit(pipeline, columns, rows)
        auc = roc_auc_score(rows["late"].to_numpy(), score(pipeline, columns, rows))
    return Trained(name, pipeline, columns, rows.height, float(auc), time.monotonic() - begun)


def log(client: FeatureEngineeringClient, model: Trained, rows: pl.DataFrame) -> None:
    """Log a version to MLflow and register it as MODEL_NAME; v2 and v3 with their lookups."""
    example = rows.drop_nulls(model.columns).head(200)
    requested = example.select(*flights.REQUEST_COLUMNS, "late")
    signature = infer_signature(
        matrix(example, model.columns), model.pipeline.predict_proba(matrix(example, model.columns))
    )
    looks_up = set(model.columns) & set(LOOKED_UP)
    with mlflow.start_run(run_name=f"flight_delay {model.version}"):
        mlflow.log_metrics({"training_auc": model.auc, "training_rows": model.rows})
        client.log_model(
            model=model.pipeline,
            artifact_path="model",
            flavor=mlflow.sklearn,
            training_set=client.create_training_set(
                df=requested, feature_lookups=LOOKUPS if looks_up else [], label="late"
            ),
            registered_model_name=MODEL_NAME,
            signature=signature,
            pyfunc_predict_fn="predict_proba",
            pip_requirements=REQUIREMENTS,
            # The format that MLflow prefers, skops, does not take gradient-boosted trees.
            serialization_format="cloudpickle",
        )


def baseline(rows: pl.DataFrame, champion: Trained, challenger: Trained) -> pl.DataFrame:
    """What drift is measured against: every fourth training row per version, with its score."""
    sample = rows.gather_every(4)
    columns = [*flights.REQUEST_COLUMNS, *LOOKED_UP, "late"]
    parts = []
    for model in (champion, challenger):
        scores = score(model.pipeline, model.columns, sample)
        parts.append(
            sample.select(
                *columns,
                served_entity_name=pl.lit(model.version),
                prediction=pl.Series((scores >= 0.5).astype(float)),
                score=pl.Series(scores),
            ).rename({"late": "label"})
        )
    return pl.concat(parts)

"""The three models of the demo, trained on the flights before 1 July and logged to MLflow."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from serving.demo import flights
from serving.features import FeatureLookup

MODEL_NAME = "main.flights.flight_delay"
PLANES = "main.flights.planes"
AIRPORT_HOUR = "main.flights.airport_hour"
BASELINE = "main.flights.flight_delay_baseline"

SCHEDULE_TEXT = ["carrier", "origin", "dow"]
SCHEDULE_NUMBERS = ["local_hour", "distance"]
LOOKED_UP = [*flights.AIRPORT_COLUMNS, *flights.PLANE_COLUMNS]
CHALLENGER_TEXT = [*SCHEDULE_TEXT, "dest"]
CHALLENGER_NUMBERS = [*SCHEDULE_NUMBERS, *LOOKED_UP]

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
    """A fitted version: its number in the registry, columns, and the training AUC seen at the end
    of the training period (June, not trained on)."""

    version: str
    pipeline: Pipeline
    columns: list[str]
    rows: int
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

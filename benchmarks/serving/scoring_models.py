"""Models of many kinds, each with rows that it takes: what the fast ways are compared on."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

warnings.simplefilter("ignore")

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from mlflow.models import ModelSignature, infer_signature  # noqa: E402
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec  # noqa: E402
from sklearn.compose import make_column_transformer  # noqa: E402
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: E402
from sklearn.svm import SVC  # noqa: E402
from sklearn.tree import DecisionTreeRegressor  # noqa: E402

Row = dict[str, Any]


class Saved(NamedTuple):
    """A saved model, and rows for it in the types of JSON."""

    name: str
    folder: Path
    rows: list[Row]


class Params(mlflow.pyfunc.PythonModel):
    """Adds its parameters, and tells what types it was given."""

    def predict(self, context, model_input, params=None):
        kinds = [str(kind) for kind in model_input.dtypes]
        return [[float(row.sum()), kinds, sorted((params or {}).items())]
                for _, row in model_input.iterrows()]  # fmt: skip


class Told(mlflow.pyfunc.PythonModel):
    """Gives back what it was given: columns, types and values."""

    def predict(self, context, model_input, params=None):
        if isinstance(model_input, pd.DataFrame):
            kinds = {str(name): str(kind) for name, kind in model_input.dtypes.items()}
            values = model_input.astype(object).where(model_input.notna(), None)
            return [{"kinds": kinds, "row": repr(row)} for row in values.to_dict("records")]
        return [repr(type(model_input).__name__), repr(model_input)]


class Frame(mlflow.pyfunc.PythonModel):
    """Answers a frame with gaps, times and texts."""

    def predict(self, context, model_input, params=None):
        first = model_input.iloc[:, 0]
        return pd.DataFrame({
            "half": first.where(first > 0) / 2, "text": ["é" + str(v) for v in first],
            "at": pd.to_datetime(["2026-01-01"] * len(first)),
        })  # fmt: skip


def save_all(folder: Path, wanted: Sequence[str] = ()) -> list[Saved]:
    """Every model, or those. folder: empty."""
    random = np.random.default_rng(11)
    saved: list[Saved] = []
    names = [f"c{number}" for number in range(5)]
    numbers = pd.DataFrame(random.normal(size=(200, 5)), columns=names)
    target = (numbers.c0 + numbers.c1 > 0).astype(int)
    mixed = pd.DataFrame({
        "carrier": random.choice(["UA", "AA", "é"], 200), "hour": random.normal(size=200),
        "seats": random.integers(0, 300, 200), "late": random.integers(0, 2, 200) == 1,
    })  # fmt: skip

    def add(name: str, save: Callable[..., None], rows: pd.DataFrame, **more: Any) -> None:
        if wanted and name not in wanted:
            return
        save(path=folder / name, pip_requirements=["mlflow"], **more)
        saved.append(Saved(name, folder / name, rows.head(3).to_dict("records")))

    def sklearn(name: str, model: Any, rows: pd.DataFrame, y: Any = target, **more: Any) -> None:
        model.fit(rows, y)
        more.setdefault("signature", infer_signature(rows, model.predict(rows)))
        pickle = {"serialization_format": "cloudpickle"}
        add(name, mlflow.sklearn.save_model, rows, sk_model=model, **pickle, **more)

    def python(name: str, model: Any, rows: pd.DataFrame, signature: Any) -> None:
        add(name, mlflow.pyfunc.save_model, rows, python_model=model, signature=signature)

    sklearn("linear regression", LinearRegression(), numbers)
    sklearn(
        "logistic probabilities", LogisticRegression(), numbers, pyfunc_predict_fn="predict_proba"
    )
    sklearn("random forest", RandomForestClassifier(5, n_jobs=1, random_state=1), numbers)
    sklearn("gradient boosting", HistGradientBoostingClassifier(max_iter=5), numbers)
    sklearn("support vectors", SVC(), numbers)
    sklearn("scaled pipeline", make_pipeline(StandardScaler(), LogisticRegression()), numbers)
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
        (StandardScaler(), ["hour", "seats"]),
        ("passthrough", ["late"]),
    )
    sklearn("mixed pipeline", make_pipeline(columns, LogisticRegression()), mixed,
            pyfunc_predict_fn="predict_proba", input_example=mixed.head(5))  # fmt: skip
    sklearn("float columns", LinearRegression(), numbers.astype("float32"))
    longs = (numbers * 10).astype("int64")
    sklearn("long columns", DecisionTreeRegressor(random_state=1), longs)
    sklearn("integer columns", DecisionTreeRegressor(random_state=1), longs.astype("int32"))
    texts = mixed[["carrier"]].assign(origin=random.choice(["EWR", "JFK"], 200))
    encoded = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    sklearn("text columns", encoded, texts, input_example=texts.head(5))
    sklearn("no signature", LogisticRegression(), numbers, signature=False)
    tensor = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 5))]))
    sklearn("tensor signature", LogisticRegression(), numbers, signature=tensor)
    unnamed = ModelSignature(inputs=Schema([ColSpec("double")] * 5))
    sklearn("columns without names", LogisticRegression(), numbers, signature=unnamed)
    params = ParamSchema([ParamSpec("factor", "double", 1.0), ParamSpec("top", "long", 3)])
    doubles = Schema([ColSpec("double", name) for name in names])
    python("parameters", Params(), numbers, ModelSignature(inputs=doubles, params=params))
    some = Schema([ColSpec("double", "c0"), ColSpec("double", "c1", required=False),
                   ColSpec("string", "carrier", required=False)])  # fmt: skip
    partial = numbers[["c0", "c1"]].assign(carrier="UA")
    python("optional columns", Told(), partial, ModelSignature(inputs=some))
    kinds = Schema([ColSpec("string", "carrier"), ColSpec("double", "hour"),
                    ColSpec("long", "seats"), ColSpec("boolean", "late")])  # fmt: skip
    python("every scalar type", Told(), mixed, ModelSignature(inputs=kinds))
    times = Schema([ColSpec("datetime", "at"), ColSpec("double", "c0")])
    timed = numbers[["c0"]].assign(at="2026-01-01T10:00:00")
    python("times", Told(), timed, ModelSignature(inputs=times))
    python("frames answered", Frame(), numbers, ModelSignature(inputs=doubles))
    python("no signature, told", Told(), mixed, None)
    return saved

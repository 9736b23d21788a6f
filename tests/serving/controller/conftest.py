"""Real models in a real registry, made once, and patience."""

import time
import warnings
from types import SimpleNamespace

import pytest

from capture.settings import Settings
from serving import registry

PATIENCE_SECONDS = 120


def wait_for(condition, seconds=PATIENCE_SECONDS):
    """The first true value of the condition. Fails when patience ends."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(0.02)


@pytest.fixture
def eventually():
    return wait_for


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Registry with `double` version 1 (answers twice its input), 2 (raises at load), 3 (hangs at
    load), 4 (answers the input minus one) and 5 (prints a gigabyte at load), 6 (hangs at
    load in a fork); `folders`: their files."""
    import mlflow
    from mlflow.models import infer_signature

    place = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{place / 'mlflow.db'}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        experiment = mlflow.create_experiment(
            "models", artifact_location=(place / "artifacts").as_uri()
        )
        mlflow.set_experiment(experiment_id=experiment)
        import numpy as np
        import pandas as pd
        from sklearn.linear_model import LinearRegression

        rows = pd.DataFrame({"x": np.arange(10.0)})
        signature = infer_signature(rows, np.arange(10.0))
        with mlflow.start_run():
            for target in (2 * rows["x"], None, "hang", rows["x"] - 1, "print", "fork"):
                if target is None or isinstance(target, str):
                    mlflow.pyfunc.log_model(
                        name="model",
                        python_model=_code(place, target),
                        signature=signature,
                        registered_model_name="double",
                        pip_requirements=["mlflow"],
                    )
                else:
                    mlflow.sklearn.log_model(
                        LinearRegression().fit(rows, target),
                        name="model",
                        signature=signature,
                        registered_model_name="double",
                        pip_requirements=["mlflow", "scikit-learn"],
                        serialization_format="cloudpickle",
                    )
    known = Settings(data_dir=place, mlflow_tracking_uri=uri)
    folders = {v: registry.find(known, "double", v).folder for v in ("1", "2", "3", "4", "5", "6")}
    return SimpleNamespace(uri=uri, folders=folders)


def _code(place, what):
    """A model from code that raises or hangs when it is loaded."""
    text = {
        None: "raise RuntimeError('the weights are missing')",
        "hang": "import time; time.sleep(3600)",
        "fork": "import sys, time; '--socket' in sys.argv and time.sleep(3600)",
        "print": "for _ in range(1000): print((('x' * 99 + '\\n') * 10_000), end='')",
    }[what]
    path = place / f"model_{what or 'raises'}.py"
    path.write_text(
        "import mlflow\nimport pandas as pd\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def load_context(self, context):\n"
        f"        {text}\n"
        "    def predict(self, context, model_input: pd.DataFrame, params=None):\n"
        "        return [1.0]\n"
        "mlflow.models.set_model(Model())\n"
    )
    return str(path)

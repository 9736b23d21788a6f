"""A zygote's rehearsal: a small model is saved, loaded, probed and forgotten before anything is
forked. What that imports and warms (libraries import half of themselves at their first prediction,
and Python rewrites code as it runs) is then shared by all forks: 10 MB of a replica's own instead
of 30, and a third of its start."""

import tempfile
import warnings
from pathlib import Path


def run() -> None:
    """Raises whatever an environment without scikit-learn, or with an odd one, raises."""
    import mlflow.sklearn
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    from serving.worker import model

    rows = pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8.0) % 3})
    fitted = LogisticRegression().fit(rows, [0, 1] * 4)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            fitted,
            Path(place) / "model",
            signature=infer_signature(rows, fitted.predict(rows)),
            pip_requirements=["mlflow"],
            serialization_format="cloudpickle",
        )
        model.Model(Path(place) / "model")

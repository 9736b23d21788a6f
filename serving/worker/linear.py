"""scikit-learn's linear models without the checks that it makes at each call: of one row these take
a hundred times as long as the arithmetic. A fast way like those of ways.py, proven as they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Predict = Callable[[Any], Any]

# What an instance may have put in the place of its class's.
_OWN = {"predict", "decision_function", "_decision_function"}


def engine(model: Any) -> Predict | None:
    """What `model.predict` computes of an array of doubles without nan and infinity, shape (rows,
    columns), as far as its class tells: to be proven; None for other models than scikit-learn's
    own linear ones."""
    try:
        from sklearn.linear_model._base import LinearClassifierMixin, LinearModel
    except ImportError:
        return None
    kind = type(model)
    if not isinstance(model, LinearClassifierMixin | LinearModel) or _OWN & vars(model).keys():
        return None
    if isinstance(model, LinearClassifierMixin):
        own = kind.predict, kind.decision_function
        if own == (LinearClassifierMixin.predict, LinearClassifierMixin.decision_function):
            return _classifier(model)
    if isinstance(model, LinearModel):
        is_sklearns = kind.predict.__module__.startswith("sklearn.linear_model.")
        if is_sklearns and kind._decision_function == LinearModel._decision_function:
            return _regressor(model)
    return None


def _classifier(model: Any) -> Predict:
    weights, intercept, classes = model.coef_.T, model.intercept_, model.classes_

    def predict(rows: Any) -> Any:
        scores = rows @ weights + intercept
        if scores.ndim > 1 and scores.shape[1] > 1:
            return classes.take(np.argmax(scores, axis=1))
        return classes.take((scores.reshape(-1) > 0).astype(np.intp))

    return predict


def _regressor(model: Any) -> Predict:
    weights, intercept = model.coef_.T, model.intercept_
    return lambda rows: rows @ weights + intercept

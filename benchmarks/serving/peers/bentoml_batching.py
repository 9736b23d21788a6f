"""Peer: BentoML with its adaptive batching, the same rows -> array -> estimator inside.

Requests become arrays in the service itself: a row a record, as its batching joins along the first
axis. `bentoml serve` starts it with one worker; model folder and port come in the environment.
"""

import os
import pickle
import warnings
from operator import itemgetter
from pathlib import Path

import bentoml
import numpy as np


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Estimator:
    """One model behind /invocations."""

    def __init__(self) -> None:
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
        self.model = pickle.loads((Path(os.environ["PEER_MODEL"]) / "estimator.pkl").read_bytes())
        self.in_order = itemgetter(*self.model.feature_names_in_)

    @bentoml.api(route="/invocations", batchable=True, max_batch_size=4096, max_latency_ms=1_000)
    def invocations(self, dataframe_records: list[dict[str, float]]) -> list[int]:
        rows = [self.in_order(record) for record in dataframe_records]
        return self.model.predict(np.array(rows, dtype=np.float64)).tolist()

"""Peer: LitServe with its batching, the same bytes -> array -> estimator inside.

Batches of up to 64 that wait 1 ms at most: with its default of 10 ms it would answer fewer. One
worker process besides its server.
"""

import pickle
import sys
import warnings
from operator import itemgetter
from pathlib import Path

import litserve
import numpy as np


class Estimator(litserve.LitAPI):
    """A request may hold several rows; a batch is their rows joined."""

    def setup(self, device):
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
        self.model = pickle.loads((Path(sys.argv[1]) / "estimator.pkl").read_bytes())
        self.in_order = itemgetter(*self.model.feature_names_in_)

    def decode_request(self, request):
        return [self.in_order(row) for row in request["dataframe_records"]]

    def batch(self, inputs):
        self.ends = np.cumsum([len(rows) for rows in inputs])[:-1]
        return np.array([row for rows in inputs for row in rows], dtype=np.float64)

    def predict(self, rows):
        return self.model.predict(rows)

    def unbatch(self, output):
        return np.split(output, self.ends)

    def encode_response(self, output):
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    api = Estimator(max_batch_size=64, batch_timeout=0.001, api_path="/invocations")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False,
               log_level="warning")  # fmt: skip

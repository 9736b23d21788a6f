"""Peer: what an expert writes by hand for one model: async FastAPI, orjson, numpy, scikit-learn.

No pydantic, no data frame, no MLflow at the time of a request: bytes -> orjson -> one array -> the
estimator -> bytes. Columns are taken by name, in the model's order, as any right server must.
uvicorn with uvloop and httptools, one process, no access log.
"""

import pickle
import sys
import warnings
from operator import itemgetter
from pathlib import Path

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
model = pickle.loads((Path(sys.argv[1]) / "estimator.pkl").read_bytes())
in_order = itemgetter(*model.feature_names_in_)
app = FastAPI()


@app.post("/invocations")
async def invocations(request: Request) -> Response:
    rows = orjson.loads(await request.body())["dataframe_records"]
    found = model.predict(np.array([in_order(row) for row in rows], dtype=np.float64))
    answer = orjson.dumps({"predictions": found}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(answer, media_type="application/json")


uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False)

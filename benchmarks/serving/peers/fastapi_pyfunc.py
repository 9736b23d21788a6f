"""Peer: FastAPI around MLflow's pyfunc, as most teams write it.

The handler is `async`, for the work is CPU alone: a thread pool costs each request more than it
gives on one core. uvicorn with uvloop and httptools, one process, no access log.
"""

import sys

import mlflow.pyfunc
import pandas as pd
import uvicorn
from fastapi import FastAPI

model = mlflow.pyfunc.load_model(sys.argv[1])
app = FastAPI()


@app.post("/invocations")
async def invocations(body: dict[str, list[dict[str, float]]]) -> dict[str, list[int]]:
    frame = pd.DataFrame(body["dataframe_records"])
    return {"predictions": model.predict(frame).tolist()}


uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False)

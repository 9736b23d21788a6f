"""`python odd_models.py REGISTRY FOLDER` registers two models with habits of their own:

main.flows.own   its code_paths hold packages called as ours are
main.flows.odd   prints, forks, leaves its folder and reads its path, at load and in each call
"""

import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import mlflow  # noqa: E402
import pandas  # noqa: E402
from mlflow.models import infer_signature  # noqa: E402

NAMES = ("serving", "capture", "features", "wire")
OWN = """
import mlflow
import serving, capture, features, wire

class Own(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        import serving, capture, features, wire
        return [each.WHOSE for each in (serving, capture, features, wire)]

mlflow.models.set_model(Own())
"""
ODD = """
import os, sys
import mlflow

def misbehave():
    print("printed", flush=True)
    os.write(1, b"written without a line's end")
    os.chdir("/")
    child = os.fork()
    if child == 0:
        os._exit(7)
    os.waitpid(child, 0)
    assert all(os.path.isabs(one) for one in sys.path if one)

class Odd(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        misbehave()

    def predict(self, context, model_input, params=None):
        misbehave()
        return [float(a) * 2 for a in model_input["a"]]

mlflow.models.set_model(Odd())
"""


def main() -> None:
    registry, folder = sys.argv[1], Path(sys.argv[2])
    mlflow.set_tracking_uri(registry)
    experiment = mlflow.get_experiment_by_name("flows").experiment_id
    signature = infer_signature(pandas.DataFrame({"a": [0.5]}), [0.5])
    for name in NAMES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"WHOSE = 'the model: {name}'")
    sys.path.insert(0, str(folder))
    packages = [str(folder / name) for name in NAMES]
    for name, code, paths in (("own", OWN, packages), ("odd", ODD, None)):
        file = folder / f"{name}.py"
        file.write_text(code)
        with mlflow.start_run(experiment_id=experiment):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(file),
                code_paths=paths,
                signature=signature,
                registered_model_name=f"main.flows.{name}",
                pip_requirements=["mlflow"],
            )


if __name__ == "__main__":
    main()

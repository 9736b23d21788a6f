"""A model that does what it is told: what models do to a server when they go wrong.

Column `x` comes back times WILD_FACTOR; column `act` says what happens before that. WILD_LOAD says
what happens when it is loaded.
"""

import os
import signal
import sys
import time

import mlflow
import pandas as pd

MIB = 1 << 20
LEAKED = []


def act(word):
    """Do what one row asks for: a word, and a number after a colon where it needs one."""
    what, _, number = word.partition(":")
    if what == "raise":
        raise ValueError("this row cannot be answered")
    if what == "exit":
        os._exit(7)
    if what == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "sleep":
        time.sleep(float(number))
    if what == "loop":
        while True:
            pass
    if what == "leak":  # so many MiB, for good
        LEAKED.append(bytearray(b"x") * (int(number) * MIB))
    if what == "take":  # so many MiB, piece by piece, as fast as it goes
        taken = []
        while len(taken) * 64 < int(number):
            taken.append(bytearray(b"x") * (64 * MIB))
    if what == "print":  # so many MiB of lines
        line = "x" * 1023 + "\n"
        for _ in range(int(number) * 1024):
            sys.stdout.write(line)
    if what == "fork":  # so many children that stay
        for _ in range(int(number)):
            if os.fork() == 0:
                time.sleep(3600)
                os._exit(0)
    if what == "split":  # both go on as if nothing had happened
        os.fork()


class Wild(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.factor = float(os.environ.get("WILD_FACTOR", "1"))
        load = os.environ.get("WILD_LOAD")
        if load == "raise":
            raise RuntimeError("the weights of this version are missing")
        if load == "die":
            print("the licence of this version has ended", flush=True)
            os._exit(3)
        if load == "hang":
            print("still waiting for the weights", flush=True)
            time.sleep(3600)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        for word in model_input["act"]:
            act(word)
        return [self.factor * x for x in model_input["x"]]


mlflow.models.set_model(Wild())

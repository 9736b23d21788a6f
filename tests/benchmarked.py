"""Modules of the benchmarks, for tests that run their short form or share what they hold."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(patch: pytest.MonkeyPatch, folder: str, name: str) -> ModuleType:
    """A fresh module of a folder of benchmarks. Until the patch is undone it is known by its name
    and finds the modules beside it."""
    patch.syspath_prepend(str(BENCHMARKS / folder))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module

"""Builds the wheel: pure Python, or with `INFERLAKE_COMPILE=1` with the modules that a request
passes in the gateway compiled to C extensions by mypyc, beside their source.

They then cost a third less processor time (benchmarks/serving/peers.py, with and without
--interpreted). An editable install is never compiled: an extension would hide what is edited.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Nothing that a worker imports (serving/wire.py): it runs in environments of other Pythons.
MODULES = [
    "capture/exchanges.py",
    "capture/wal.py",
    "serving/gateway/admission.py",
    "serving/gateway/counts.py",
    "serving/gateway/heads.py",
    "serving/gateway/invoke.py",
    "serving/gateway/protocol.py",
    "serving/gateway/recent.py",
    "serving/gateway/recorded.py",
    "serving/gateway/replicas.py",
    "serving/gateway/routing.py",
    "serving/gateway/twin.py",
]
# Besides the compiler, what a compiled class inherits from: it has to be seen while compiling.
NEEDED = ["mypy[mypyc]>=2.4,<3", "uvicorn>=0.54,<0.55", "httptools>=0.8"]


class CompiledGateway(BuildHookInterface[Any]):
    """Adds the extensions to a wheel, which is then one of this platform and Python."""

    PLUGIN_NAME = "custom"
    _work: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """What has to be there before `initialize`."""
        return NEEDED if _is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, if asked to. Raises what the compiler raises: a wheel that was to be compiled
        and is not would only be found out under load."""
        if version == "editable" or not _is_wanted():
            return
        self._work = tempfile.TemporaryDirectory(prefix="inferlake-compiled-")
        built = Path(self._work.name) / "built"
        _compile(built, self._work.name)
        for extension in built.rglob("*.so"):
            build_data["force_include"][str(extension)] = str(extension.relative_to(built))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        if self._work is not None:
            self._work.cleanup()


def _is_wanted() -> bool:
    return os.environ.get("INFERLAKE_COMPILE") == "1"


def _compile(built: Path, work: str) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution

    # Types are checked by mypy with all dependencies at hand, not here.
    options = ["--config-file=", "--ignore-missing-imports"]
    extensions = mypycify([*options, *MODULES], opt_level="3", target_dir=work)
    command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(built), work
    command.ensure_finalized()
    command.run()

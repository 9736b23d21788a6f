"""Kinds of jobs that need no data: what tests of jobs run in a job's own process."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from capture import errors
from capture.settings import Settings
from monitors import jobs


def write(_: Settings, arguments: Mapping[str, Any], progress: jobs.Progress) -> dict[str, Any]:
    text = arguments["text"]
    for done in range(len(text) + 1):
        progress.tell("writing", done, len(text))
    (progress.folder / "text.html").write_text(text)
    return {"file": "text.html", "letters": len(text)}


def wait(_: Settings, _arguments: Mapping[str, Any], progress: jobs.Progress) -> dict[str, Any]:
    while True:
        progress.tell(f"pids {os.getpid()}")
        time.sleep(0.01)


def sleep(_: Settings, _arguments: Mapping[str, Any], progress: jobs.Progress) -> dict[str, Any]:
    child = subprocess.Popen(["sleep", "600"])
    progress.tell(f"pids {os.getpid()} {child.pid}")
    time.sleep(600)
    return {}


def refuse(_: Settings, _arguments: Mapping[str, Any], _progress: jobs.Progress) -> dict[str, Any]:
    raise errors.InvalidParameter("window: there are no rows.")


def die(_: Settings, _arguments: Mapping[str, Any], _progress: jobs.Progress) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}

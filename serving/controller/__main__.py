"""The controller process: settings, database, socket, loop."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from capture import database
from capture.settings import Settings
from serving.controller import loop as control


class _Knocks(asyncio.DatagramProtocol):
    """Whatever comes to the controller's socket means: look now."""

    def __init__(self, controller: control.Controller) -> None:
        self.controller = controller

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.controller.wake()


async def serve(settings: Settings) -> None:
    """Control until SIGTERM or SIGINT. INFERLAKE_STOP_WORKERS=1: the replicas end with it."""
    engine = database.open_engine(settings)
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    stop_workers = os.environ.get("INFERLAKE_STOP_WORKERS") == "1"
    controller = control.Controller(settings, engine, stop_workers)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, controller.stop)
    knocker = settings.run_dir / "controller.sock"
    knocker.unlink(missing_ok=True)
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Knocks(controller), local_addr=str(knocker), family=socket.AF_UNIX
    )
    ready = settings.run_dir / "controller.ready"
    await controller.adopt()
    _write_ready(ready)
    try:
        await controller.run()
    finally:
        ready.unlink(missing_ok=True)
        transport.close()
        knocker.unlink(missing_ok=True)
        engine.dispose()


def _write_ready(path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid()}), encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    """`python -m serving.controller`."""
    given: dict[str, Any] = {}
    asyncio.run(serve(Settings(**given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

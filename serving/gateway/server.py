"""The gateway's process: one uvicorn, one data plane; start, ready, drain, end."""

import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from capture import database, logline, wal
from capture.settings import Settings
from serving.gateway import invoke, protocol

log = logline.logger(__name__)

READY_FILE = "gateway.ready"
BACKLOG = 2_048

# What makes the ASGI application around a data plane: serving.app.build.
Build = Callable[[Settings, invoke.DataPlane], Any]


class Server(uvicorn.Server):
    """uvicorn's server, which says by a file that it answers. read_seconds: a client that takes
    nothing of an answer for this long is cut off."""

    def __init__(self, config: uvicorn.Config, ready: Path, read_seconds: float) -> None:
        super().__init__(config)
        self._ready = ready
        self._read_milliseconds = int(read_seconds * 1000)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for listener in (one for server in self.servers for one in server.sockets):
                # Connections inherit it. The kernel takes megabytes of answers before the protocol
                # hears that nobody reads them, and it would keep them for good.
                listener.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._read_milliseconds
                )
            port = self.servers[0].sockets[0].getsockname()[1]
            unfinished = self._ready.with_suffix(".new")
            unfinished.write_text(json.dumps({"pid": os.getpid(), "port": port}))
            unfinished.replace(self._ready)
            log.info("gateway_ready", port=port)

    def sweep(self, now: float) -> None:
        """Close connections that are over their time. now: the loop's."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, protocol.GatewayProtocol):
                connection.sweep(now)


def run(settings: Settings, build: Build) -> None:
    """Serve until SIGTERM; returns when every accepted request is answered and logged."""
    for secret in (settings.admin_token, settings.service_token):
        if secret is not None:
            logline.hide(secret.get_secret_value())
    # uvicorn raises the signal that ended it once more when it is done; that must not end us.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvloop.run(_serve(settings, build))


async def _serve(settings: Settings, build: Build) -> None:
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    ready = settings.run_dir / READY_FILE
    ready.unlink(missing_ok=True)
    engine = database.open_engine(settings)
    plane = invoke.DataPlane(settings, wal.Log(settings.wal_dir, settings), engine)
    config = _config(settings, plane, build(settings, plane))
    server = Server(config, ready, settings.body_timeout_seconds)
    plane.each_sweep(server.sweep)
    plane.start()
    # What was built so far lives as long as the process: collections need not look at it again.
    gc.collect()
    gc.freeze()
    gc.enable()
    try:
        await server.serve()
    finally:
        ready.unlink(missing_ok=True)
        await plane.close()
        engine.dispose()
    log.info("gateway_ended")


def _config(settings: Settings, plane: invoke.DataPlane, app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=cast(type[asyncio.Protocol], protocol.bound(plane)),  # it is only called
        ws="none",
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(settings.keep_alive_seconds),
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )

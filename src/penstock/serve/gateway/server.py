"""The gateway under uvicorn: streams that never end by themselves end when the server stops."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

_DRAIN_S = 30


class GatewayServer(uvicorn.Server):
    """Closes live pages before it waits for connections; requests may finish for ``drain_s``."""

    def __init__(
        self, app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000, drain_s: int = _DRAIN_S
    ) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=drain_s,
            timeout_keep_alive=75,
            # Live pages are closed below; a hurried end would leave the lifespan's task behind.
            lifespan="off",
        )
        super().__init__(config)
        self._live = app.state.gateway.live

    async def serve_unsignalled(self, sockets: list[socket.socket]) -> None:
        """Serve until ``should_exit``; signals are left to the caller."""
        await self._serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._live.closing.set()
        await super().shutdown(sockets=sockets)

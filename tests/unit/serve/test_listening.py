"""The socket that a server listens on."""

from __future__ import annotations

import asyncio
import socket

from penstock.serve.launch import _listen


async def test_tokens_leave_at_once() -> None:
    """Accepted connections wait for no acknowledgement before they send the next small chunk."""
    listener = _listen("127.0.0.1", 0)
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = writer.get_extra_info("socket")
        accepted.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(handle, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await accepted
        writer.close()

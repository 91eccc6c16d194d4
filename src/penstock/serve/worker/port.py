"""Sockets of one process: ZeroMQ PUSH to each peer by name, one PULL for all that comes.

A frame is a head (secret, kind, sender), a body and possibly a buffer. Frames without the secret
are dropped, larger ones than ``MAX_FRAME_BYTES`` end the connection that sent them. The secret
keeps strangers on the same network out; it is no protection against somebody who can listen in.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

import zmq

from penstock.serve.wire import COORDINATOR, Message, decode, encode
from penstock.serve.worker.executor import Buffer

SECRET_BYTES = 16
MAX_FRAME_BYTES = 1 << 31
_HEAD = Struct(f"!{SECRET_BYTES}sBI")
_COPY_BELOW_BYTES = 1 << 16


class Kind(IntEnum):
    """What the body of a frame is."""

    MESSAGE = 0
    """``wire`` message."""
    HELLO = 1
    """A worker is ready; the endpoint on which it listens."""
    ALIVE = 2
    """A sign of life; empty."""
    PEERS = 3
    """Endpoints by name, "" = gone."""
    PEERS_KNOWN = 4
    """Answer to PEERS; its number."""


class Frame(NamedTuple):
    """``sender`` is the number a process got when it was started, 0 = the coordinator."""

    kind: Kind
    sender: int
    body: memoryview
    buffer: memoryview | None

    def message(self) -> Message:
        return decode(self.body)


class Port:
    """Not safe to share between threads. ``endpoint`` is where others reach it."""

    def __init__(self, secret: bytes, sender: int, host: str = "127.0.0.1") -> None:
        self._secret = secret
        self._sender = sender
        self._context = zmq.Context()
        self._in = self._context.socket(zmq.PULL)
        self._in.setsockopt(zmq.RCVHWM, 0)
        self._in.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        number = self._in.bind_to_random_port(f"tcp://{host}")
        self.endpoint = f"tcp://{host}:{number}"
        self._out: dict[str, zmq.Socket[bytes]] = {}
        self._gone: set[str] = set()
        self._held: dict[str, list[list[Buffer]]] = {}

    @property
    def fd(self) -> int:
        """Becomes readable (once) when frames arrive after ``receive`` has found none."""
        return int(self._in.getsockopt(zmq.FD))

    def learn(self, peers: Mapping[str, str]) -> None:
        """Reach peers at new endpoints; what was still on its way to old ones is dropped."""
        for name, endpoint in peers.items():
            old = self._out.pop(name, None)
            if old is not None:
                old.close(linger=0)
            if not endpoint:
                self._gone.add(name)
                self._held.pop(name, None)
                continue
            self._gone.discard(name)
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 20)
            socket.connect(endpoint)
            self._out[name] = socket
            for parts in self._held.pop(name, ()):
                socket.send_multipart(parts)

    def send(self, to: str, message: Message, buffer: Buffer | None = None) -> None:
        """Queue ``message`` for a peer; held back until the peer is known, dropped if gone."""
        self.post(to, Kind.MESSAGE, encode(message), buffer)

    def post(self, to: str, kind: Kind, body: bytes, buffer: Buffer | None = None) -> None:
        """Queue a frame, as ``send`` does."""
        parts: list[Buffer] = [_HEAD.pack(self._secret, kind, self._sender), body]
        if buffer is not None:
            parts.append(buffer)
        socket = self._out.get(to)
        if socket is not None:
            copy = buffer is None or len(buffer) < _COPY_BELOW_BYTES
            socket.send_multipart(parts, copy=copy)
        elif to not in self._gone:
            self._held.setdefault(to, []).append(parts)

    def receive(self) -> Frame | None:
        """The next frame that has arrived, None if none has."""
        while True:
            try:
                parts = self._in.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            frame = self._check([part.buffer for part in parts])
            if frame is not None:
                return frame

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until a frame has arrived."""
        self._in.poll(None if timeout_s is None else int(timeout_s * 1000))

    def _check(self, parts: list[memoryview]) -> Frame | None:
        if not 2 <= len(parts) <= 3 or len(parts[0]) != _HEAD.size:
            return None
        secret, kind, sender = _HEAD.unpack(parts[0])
        if not hmac.compare_digest(secret, self._secret):
            return None
        return Frame(Kind(kind), sender, parts[1], parts[2] if len(parts) == 3 else None)

    def close(self, linger_s: float = 0.0) -> None:
        """Close all; what the coordinator has not yet got may take ``linger_s`` to leave."""
        for name, socket in self._out.items():
            socket.close(linger=int(1000 * linger_s) if name == COORDINATOR else 0)
        self._in.close(linger=0)
        self._context.term()

"""Workers that talk over sockets; how they are started is left to a launcher.

Between processes messages go straight from worker to worker. The coordinator hears of a death
from the launcher (its process has ended) or from silence (no sign of life for ``silence_s``).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import msgspec

from penstock.errors import InputError
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import Failed, Stop, ToCoordinator, ToWorker
from penstock.serve.worker.port import SECRET_BYTES, Frame, Kind, Port
from penstock.serve.worker.run import Boot

_FRAMES_AT_ONCE = 256
_LAST_WORDS_S = 0.2
_STOP_S = 3.0


class End(NamedTuple):
    """How a worker ended. ``spoke``: it has sent what its fault was."""

    how: str
    spoke: bool = False


class Handle(Protocol):
    """A worker that was launched."""

    def kill(self) -> None:
        """End it at once."""
        ...

    async def ended(self) -> End:
        """Wait until it has ended."""
        ...


class Launcher(Protocol):
    """Brings workers to life. ``host`` is the address on which the coordinator listens."""

    @property
    def host(self) -> str: ...

    async def open(self) -> None:
        """Be ready to launch. Raises ``InputError``."""
        ...

    async def launch(self, boot: Boot) -> Handle:
        """Start a worker; it says hello over its socket. Raises ``InputError``."""
        ...

    async def close(self) -> None:
        """Free what is not a worker's."""
        ...


@dataclass(slots=True, eq=False)
class _Peer:
    """A worker from its start to its end.

    ``problem`` is what it said of its own fault. ``ready``: ``start`` has returned.
    """

    name: str
    number: int
    hello: asyncio.Future[str]
    seen_s: float
    handle: Handle | None = None
    watch: asyncio.Task[None] | None = None
    endpoint: str = ""
    problem: str = ""
    ready: bool = False
    leaving: bool = False
    spoke: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Introduction:
    """``missing`` are the numbers of the workers that have not confirmed yet."""

    newcomer: int
    missing: set[int]
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def discard(self, number: int, *, gone: bool = False) -> None:
        self.missing.discard(number)
        if not self.missing or (gone and number == self.newcomer):
            self.over.set()


class SocketPool:
    """A ``WorkerPool`` over a launcher."""

    def __init__(
        self, launcher: Launcher, *, silence_s: float = 15.0, alive_every_s: float = 1.0
    ) -> None:
        self._launcher = launcher
        self._silence_s = silence_s
        self._alive_every_s = alive_every_s
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._port: Port | None = None
        self._opening = asyncio.Lock()
        self._watchman: asyncio.Task[None] | None = None
        self._peers: dict[str, _Peer] = {}
        self._by_number: dict[int, _Peer] = {}
        self._numbers = 0
        self._asked = 0
        self._introductions: dict[int, _Introduction] = {}
        self._message: Callable[[ToCoordinator], None] = lambda _message: None
        self._died: Callable[[str, str], None] = lambda _worker, _why: None

    def listen(
        self, message: Callable[[ToCoordinator], None], died: Callable[[str, str], None]
    ) -> None:
        self._message = message
        self._died = died

    # -- starting and ending ------------------------------------------------------------------

    async def start(self, spec: WorkerSpec) -> None:
        await self.stop(spec.name)
        port = await self._open()
        loop = asyncio.get_running_loop()
        self._numbers += 1
        peer = _Peer(spec.name, self._numbers, loop.create_future(), loop.time())
        self._peers[spec.name] = self._by_number[peer.number] = peer
        boot = Boot(
            spec, self._secret, peer.number, port.endpoint, self._launcher.host, self._alive_every_s
        )
        try:
            peer.handle = await self._launcher.launch(boot)
            peer.watch = loop.create_task(self._watch(peer, peer.handle))
            peer.endpoint = await peer.hello
            if self._peers.get(spec.name) is peer:
                await self._introduce(peer, port)
            if self._peers.get(spec.name) is not peer:
                raise InputError(f"worker {spec.name!r} did not start: {peer.problem}")
        except BaseException:
            await self._remove(peer)
            raise
        peer.ready = True

    async def _open(self) -> Port:
        async with self._opening:
            if self._port is None:
                await self._launcher.open()
                self._port = Port(self._secret, 0, self._launcher.host)
                loop = asyncio.get_running_loop()
                loop.add_reader(self._port.fd, self._drain)
                self._watchman = loop.create_task(self._listen_for_silence())
            return self._port

    async def _introduce(self, peer: _Peer, port: Port) -> None:
        """Tell everybody of everybody, and wait until they know: nobody writes to the dead."""
        port.learn({peer.name: peer.endpoint})
        here = {other.name: other.endpoint for other in self._peers.values() if other.endpoint}
        others = [other for other in self._peers.values() if other.endpoint and other is not peer]
        self._asked += 1
        number = self._asked
        introduction = _Introduction(peer.number, {other.number for other in (*others, peer)})
        self._introductions[number] = introduction
        self._tell(peer.name, number, here)
        for other in others:
            self._tell(other.name, number, {peer.name: peer.endpoint})
        try:
            await introduction.over.wait()
        finally:
            del self._introductions[number]

    def _tell(self, worker: str, number: int, peers: dict[str, str]) -> None:
        assert self._port is not None
        self._port.post(worker, Kind.PEERS, msgspec.msgpack.encode((number, peers)))

    def send(self, worker: str, message: ToWorker) -> None:
        peer = self._peers.get(worker)
        if peer is not None and peer.endpoint and self._port is not None:
            self._port.send(worker, message)

    async def stop(self, worker: str) -> None:
        peer = self._peers.get(worker)
        if peer is not None:
            self.send(worker, Stop())
            await self._remove(peer)

    async def _remove(self, peer: _Peer) -> None:
        """End the process of ``peer``, kindly where it has begun to listen."""
        peer.leaving = True
        if peer.watch is not None and peer.handle is not None:
            if peer.endpoint:
                await _within(_STOP_S, peer.ended)
            if not peer.ended.is_set():
                peer.handle.kill()
                await peer.ended.wait()
        self._forget(peer)

    async def close(self) -> None:
        await asyncio.gather(*(self.stop(name) for name in tuple(self._peers)))
        if self._watchman is not None:
            self._watchman.cancel()
            await asyncio.gather(self._watchman, return_exceptions=True)
            self._watchman = None
        if self._port is not None:
            asyncio.get_running_loop().remove_reader(self._port.fd)
            self._port.close()
            self._port = None
        await self._launcher.close()

    # -- deaths -------------------------------------------------------------------------------

    async def _watch(self, peer: _Peer, handle: Handle) -> None:
        end = await handle.ended()
        peer.ended.set()
        if peer.leaving:
            return
        if end.spoke:
            await _within(_LAST_WORDS_S, peer.spoke)
        self._drain()
        self._forget(peer)
        peer.problem = peer.problem or end.how
        if peer.ready:
            self._died(peer.name, peer.problem)
        elif not peer.hello.done():
            problem = f"worker {peer.name!r} did not start: {peer.problem}"
            peer.hello.set_exception(InputError(problem))

    def _forget(self, peer: _Peer) -> None:
        self._by_number.pop(peer.number, None)
        for introduction in self._introductions.values():
            introduction.discard(peer.number, gone=True)
        if self._peers.get(peer.name) is not peer:
            return
        del self._peers[peer.name]
        if self._port is None or not peer.endpoint:
            return
        self._port.learn({peer.name: ""})
        for other in self._peers.values():
            if other.endpoint:
                self._tell(other.name, 0, {peer.name: ""})

    async def _listen_for_silence(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._alive_every_s, self._silence_s / 4))
            # What arrived while this loop was busy counts.
            self._drain()
            for peer in tuple(self._peers.values()):
                if loop.time() - peer.seen_s > self._silence_s and peer.handle is not None:
                    peer.problem = peer.problem or f"no sign of life for {self._silence_s:g} s"
                    peer.handle.kill()

    # -- what arrives -------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take what has arrived; the reader is called only when more comes after none was left."""
        port = self._port
        if port is None:
            return
        for _ in range(_FRAMES_AT_ONCE):
            frame = port.receive()
            if frame is None:
                return
            try:
                self._take(frame)
            except BaseException:
                # The reader would wait for something new; the rest lies here already.
                asyncio.get_running_loop().call_soon(self._drain)
                raise
        asyncio.get_running_loop().call_soon(self._drain)

    def _take(self, frame: Frame) -> None:
        """Frames of earlier lives of a worker are dropped."""
        peer = self._by_number.get(frame.sender)
        if peer is None:
            return
        peer.seen_s = asyncio.get_running_loop().time()
        if frame.kind is Kind.MESSAGE:
            message = frame.message()
            if isinstance(message, Failed):
                peer.problem = message.problem
                peer.spoke.set()
            else:
                self._message(cast(ToCoordinator, message))
        elif frame.kind is Kind.HELLO and not peer.hello.done():
            peer.hello.set_result(str(frame.body, "utf-8"))
        elif frame.kind is Kind.PEERS_KNOWN:
            number = msgspec.msgpack.decode(frame.body, type=int)
            if number in self._introductions:
                self._introductions[number].discard(frame.sender)


async def _within(seconds: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return

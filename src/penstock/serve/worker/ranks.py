"""Tensor parallelism: rank 0 is the worker; it tells the other ranks of its stage every call.

Ranks are processes of one machine. Calls go over their stdin, tensors over the process group, so
that all ranks run the same steps on the same pages. When one ends, all do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from io import RawIOBase
from struct import Struct
from time import perf_counter
from typing import TypeAlias

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from penstock.errors import InputError, PenstockError
from penstock.serve.model import ProcessGroup
from penstock.serve.pool import WorkerSpec
from penstock.serve.wire import Command
from penstock.serve.worker.executor import (
    Buffer,
    Job,
    Outcome,
    PageCount,
    TransferRefused,
    Work,
)
from penstock.serve.worker.run import RANK_ENDED, Boot, encode_boot, limit_threads
from penstock.serve.worker.torch_executor import TorchExecutor

_SIZE = Struct("!I")


class _Apply(msgspec.Struct, tag=True):
    command: Command


class _Run(msgspec.Struct, tag=True):
    jobs: list[Job]
    with_hidden: bool


class _Export(msgspec.Struct, tag=True):
    seq: int
    layer: int
    tokens: int


class _Load(msgspec.Struct, tag=True):
    seq: int
    layer: int
    tokens: int
    size: int


_Call: TypeAlias = _Apply | _Run | _Export | _Load
_CALLS: msgspec.msgpack.Decoder[_Call] = msgspec.msgpack.Decoder(_Call)


class ShardedExecutor:
    """The executor of rank 0: does each call itself, after it has told the others."""

    def __init__(self, local: TorchExecutor, group: ProcessGroup, others: Ranks) -> None:
        self._local = local
        self._group = group
        self._others = others
        self.layout = local.layout

    @classmethod
    def load(cls, spec: WorkerSpec) -> ShardedExecutor:
        """Start the other ranks and load all shards. Raises ``InputError``."""
        others = Ranks(spec)
        try:
            group = _join(spec, 0, others.store)
            local = TorchExecutor.load(spec, group)
            others.wait_until_loaded()
        except BaseException:
            others.close()
            raise
        others.watch()
        return cls(local, group, others)

    def apply(self, command: Command) -> None:
        self._others.call(_Apply(command))
        self._local.apply(command)

    def run(self, work: Work) -> Outcome:
        started_s = perf_counter()
        hidden = self._local.read_hidden(work.jobs, work.hidden)
        self._others.call(_Run(list(work.jobs), hidden is not None))
        if hidden is not None:
            hidden = hidden.to(self._local.model.device)
            dist.broadcast(hidden, 0)
        hidden = self._local.forward(work.jobs, hidden)
        return self._local.outcome(work.jobs, hidden, started_s)

    def pages_missing(self, jobs: Sequence[Job]) -> int:
        return self._local.pages_missing(jobs)

    def pages(self) -> PageCount:
        return self._local.pages()

    def export_layer(self, seq: int, layer: int, tokens: int) -> Buffer:
        self._others.call(_Export(seq, layer, tokens))
        return _export(self._local, self._group, seq, layer, tokens)

    def load_layer(self, seq: int, layer: int, tokens: int, content: Buffer) -> None:
        self._others.call(_Load(seq, layer, tokens, len(content)))
        raw = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        _load(self._local, self._group, _Load(seq, layer, tokens, len(content)), raw)

    def close(self) -> None:
        self._others.close()
        dist.destroy_process_group()


class Ranks:
    """The processes of ranks 1 and up."""

    def __init__(self, spec: WorkerSpec) -> None:
        size = spec.tensor_parallel_size
        self.store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
        self._closing = False
        self._children = []
        for rank in range(1, size):
            child = subprocess.Popen(
                [sys.executable, "-m", "penstock.serve.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            self._children.append(child)
            _write(child, encode_boot(Boot(spec, rank=rank, store_port=self.store.port)))

    def wait_until_loaded(self) -> None:
        """Raises ``InputError`` where a rank cannot load its shard."""
        for child in self._children:
            assert child.stdout is not None
            said = child.stdout.read()
            if said != b"loaded":
                raise InputError(str(said, "utf-8") or "a rank ended while it loaded its shard")

    def watch(self) -> None:
        """End this process when a rank ends."""
        for child in self._children:
            threading.Thread(target=self._end_with, args=(child,), daemon=True).start()

    def _end_with(self, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        if not self._closing:
            os._exit(RANK_ENDED)

    def call(self, call: _Call) -> None:
        data = msgspec.msgpack.encode(call)
        for child in self._children:
            _write(child, data)

    def close(self) -> None:
        self._closing = True
        for child in self._children:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.close()
            child.stdout.close()
            try:
                child.wait(2.0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def follow(boot: Boot, calls: RawIOBase) -> None:
    """The life of a rank above 0: make the calls that rank 0 makes, until it ends."""
    limit_threads(boot.spec)
    try:
        store = TCPStore("127.0.0.1", boot.store_port, boot.spec.tensor_parallel_size)
        group = _join(boot.spec, boot.rank, store)
        executor = TorchExecutor.load(boot.spec, group)
    except PenstockError as error:
        _say(str(error))
        return
    _say("loaded")
    while (size := _read(calls, _SIZE.size)) is not None:
        data = _read(calls, _SIZE.unpack(size)[0])
        if data is None:
            return
        _do(executor, group, _CALLS.decode(data))


def _do(executor: TorchExecutor, group: ProcessGroup, call: _Call) -> None:
    if isinstance(call, _Apply):
        executor.apply(call.command)
    elif isinstance(call, _Run):
        model, hidden = executor.model, None
        if call.with_hidden:
            shape = (sum(len(job.tokens) for job in call.jobs), model.config.shape.hidden_size)
            hidden = torch.empty(shape, dtype=model.dtype, device=model.device)
            dist.broadcast(hidden, 0)
        executor.logits(call.jobs, executor.forward(call.jobs, hidden))
    elif isinstance(call, _Export):
        _export(executor, group, call.seq, call.layer, call.tokens)
    else:
        try:
            _load(executor, group, call, torch.empty(call.size, dtype=torch.uint8))
        except TransferRefused:
            return  # Rank 0 meets the same and answers.


def _export(
    executor: TorchExecutor, group: ProcessGroup, seq: int, layer: int, tokens: int
) -> Buffer:
    """The pages of all ranks, one rank after another."""
    raw = np.frombuffer(executor.export_layer(seq, layer, tokens), np.uint8)
    own = torch.from_numpy(raw).to(executor.model.device)
    return group.all_gather(own).cpu().numpy().data


def _load(executor: TorchExecutor, group: ProcessGroup, call: _Load, raw: torch.Tensor) -> None:
    """Share out what ``_export`` gave elsewhere; ``raw`` is filled on rank 0."""
    raw = raw.to(executor.model.device)
    dist.broadcast(raw, 0)
    share = call.size // group.size
    own = raw[group.rank * share : (group.rank + 1) * share].cpu().numpy().data
    executor.load_layer(call.seq, call.layer, call.tokens, own)


def _join(spec: WorkerSpec, rank: int, store: TCPStore) -> ProcessGroup:
    # All ranks are on this machine.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    cuda = spec.device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=rank, world_size=spec.tensor_parallel_size
    )
    return ProcessGroup()


def _write(child: subprocess.Popen[bytes], data: bytes) -> None:
    assert child.stdin is not None
    data = _SIZE.pack(len(data)) + data
    view = memoryview(data)
    while view:
        view = view[child.stdin.write(view) :]


def _read(calls: RawIOBase, size: int) -> bytes | None:
    """Exactly ``size`` bytes, None at the end."""
    parts: list[bytes] = []
    while size:
        part = calls.read(size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _say(what: str) -> None:
    """Tell rank 0; nothing follows."""
    os.write(1, what.encode())
    os.dup2(2, 1)

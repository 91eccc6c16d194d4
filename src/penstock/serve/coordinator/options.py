"""What can be set about a runtime."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.serve.pool import ExecutorName


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Settings of one runtime.

    unavailable_s     how long a request waits for an engine that can serve it, then 503
    max_waiting       requests that may wait at the coordinator and in engines, then 429
    restart           start lost workers anew
    restart_delay_s   pause before a second and further attempt to start a worker
    drain_s           how long an engine that leaves may finish what it has
    page_size         tokens of a KV page
    record            keep a row of every request for ``Run``
    trace             keep every decision (contract tests)
    time_scale        seconds a null executor takes per modelled second
    """

    executor: ExecutorName = "torch"
    device: str = "cpu"
    dtype: str = "auto"
    threads: int = 1
    seed: int = 0
    unavailable_s: float = 30.0
    max_waiting: int = 1024
    restart: bool = True
    restart_delay_s: float = 1.0
    drain_s: float = 75.0
    page_size: int = 16
    record: bool = False
    trace: bool = False
    time_scale: float = 1.0

"""The serial queue against an independent simulation in small steps, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InputError
from penstock.experiments.maveriq.fifo import Server, serve_fifo

SERVERS = {
    0: [Server((0, 1), 3.0)],
    1: [Server((1,), 2.0)],
    2: [Server((2,), 5.0), Server((0, 2), 1.0)],
}


def by_ticks(arrivals: list[int], models: list[int]) -> list[float]:
    """Second by second: the head starts when all its GPUs are idle, one request a look."""
    busy = {0: 0, 1: 0, 2: 0}
    queue = list(enumerate(zip(arrivals, models, strict=True)))
    turns = dict.fromkeys(SERVERS, 0)
    ends = [0.0] * len(arrivals)
    now = 0
    while queue:
        index, (asked, which) = queue[0]
        server = SERVERS[which][turns[which] % len(SERVERS[which])]
        if asked <= now and all(busy[gpu] <= now for gpu in server.gpus):
            turns[which] += 1
            queue.pop(0)
            for gpu in server.gpus:
                busy[gpu] = now + int(server.service_s)
            ends[index] = now + server.service_s
        else:
            now += 1
    return ends


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=20))
def test_equal_to_small_steps(asked: list[tuple[int, int]]) -> None:
    """Head-of-line blocking by GPU, replicas in turn: the same ends."""
    asked.sort(key=lambda one: one[0])
    arrivals, models = [float(a) for a, _ in asked], [m for _, m in asked]
    served = serve_fifo(np.array(arrivals), np.array(models), SERVERS, poll_s=0, grace_s=1e6)
    assert served.end_s.tolist() == by_ticks([a for a, _ in asked], models)


def test_one_busy_gpu_holds_up_everybody() -> None:
    """The second request waits for GPU 1, and the third waits behind it though GPU 2 is idle."""
    arrivals, models = np.array([0.0, 0.5, 0.6]), np.array([0, 1, 2])
    served = serve_fifo(arrivals, models, SERVERS, poll_s=0)
    assert served.start_s.tolist() == [0.0, 3.0, 3.0]


def test_loading_blocks_and_missing_models_are_rejected() -> None:
    """A load asked for before a request ends before it starts; unknown models have no end."""
    served = serve_fifo(
        np.array([1.0, 2.0]), np.array([1, 9]), SERVERS, poll_s=0, blocked_s=[(0.5, 10.0)]
    )
    assert served.start_s[0] == 10.5
    assert served.rejected == 1
    assert served.done.tolist() == [True, False]


def test_both_denominators() -> None:
    """Of two sent, one completes in time: all of the completed, half of the sent."""
    served = serve_fifo(np.array([0.0, 0.0]), np.array([2, 9]), SERVERS, poll_s=0)
    assert served.attainment([9.0] * 10) == (1.0, 0.5)


def test_the_run_is_cut() -> None:
    """What would end after the grace has no end."""
    served = serve_fifo(np.zeros(4), np.zeros(4, int), SERVERS, poll_s=0, grace_s=7.0)
    assert served.done.tolist() == [True, True, False, False]


def test_bad_servers_are_refused() -> None:
    """No GPUs, or no time."""
    with pytest.raises(InputError, match="GPUs"):
        Server((), 1.0)
    with pytest.raises(InputError, match="above 0"):
        Server((0,), 0.0)

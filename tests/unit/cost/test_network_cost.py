"""Bytes and seconds on links and disks."""

from __future__ import annotations

import pytest
from cost_fleet import LLAMA2_70B, LLAMA_30B, node

from penstock.cost.network import iteration_bytes, kv_bytes, loading_s, transfer_s
from penstock.cost.roofline import RooflineCost
from penstock.spec.cluster import Link


def test_bytes_of_an_iteration() -> None:
    """A token is 2 bytes to the coordinator, with 2 bytes a hidden value between nodes."""
    assert iteration_bytes(LLAMA2_70B, 750, coordinator=True) == 1500
    assert iteration_bytes(LLAMA2_70B, 1) == 2 + 16384
    assert iteration_bytes(LLAMA_30B, 10) == 10 * (2 + 13312)
    assert kv_bytes(LLAMA2_70B, 100, 80) == 100 * 80 * 4096


def test_seconds_on_a_link() -> None:
    """Latency plus bytes over bandwidth."""
    assert transfer_s(16386, Link(12.5e6, 0.05)) == pytest.approx(0.05131088)


def test_loading_time() -> None:
    """Ten layers of 1.711 GB from a 1 GB/s disk take 17.1 s."""
    assert loading_s(RooflineCost(LLAMA2_70B), node("A100"), 10) == pytest.approx(17.11276032)

"""Workers as Ray actors: placement by name, one small cluster for what needs one."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from worker_factory import Listener, decode_over_stages, hops, stage

from penstock.errors import InputError
from penstock.serve.ray_pool import RayPool, _check_address, find_node
from penstock.serve.worker.null_executor import null_token

pytest.importorskip("ray", reason="the serve extra brings Ray")


def ray_node(**changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"Alive": True, "NodeID": "1", "Resources": {"CPU": 4.0}}
    return {**entry, **changes}


@pytest.mark.parametrize(
    "named",
    [
        {"Resources": {"gpu-a": 1.0}},
        {"Labels": {"penstock-node": "gpu-a"}},
        {"NodeManagerHostname": "gpu-a"},
        {"NodeName": "gpu-a"},
    ],
)
def test_a_worker_goes_to_the_ray_node_of_its_name(named: dict[str, Any]) -> None:
    """By resource, label or host name; dead nodes do not count, other names are nobody."""
    nodes = [ray_node(), ray_node(Alive=False, NodeID="2", **named), ray_node(NodeID="3", **named)]
    found = find_node(nodes, "gpu-a")
    assert found is not None
    assert found["NodeID"] == "3"
    assert find_node(nodes, "gpu-b") is None


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
async def test_a_cluster_that_is_not_there_is_an_input_error(address: str) -> None:
    """Within seconds, on one line that names the address."""
    pool = RayPool(address)
    with pytest.raises(InputError) as error:
        await pool.start(stage())
    assert address in str(error.value)
    assert "\n" not in str(error.value)
    await pool.close()


async def test_another_server_at_the_address_is_an_input_error() -> None:
    """Ray itself would go on asking it for minutes."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(InputError, match="not Ray"):
            await asyncio.to_thread(_check_address, f"127.0.0.1:{port}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(240)
async def test_actors_talk_directly_die_noticed_and_leave_nothing(tmp_path: Path) -> None:
    """Two actors serve a pipeline; a killed one starts anew; after closing none is left."""
    pool = RayPool()
    listener = Listener(pool)
    first, last = stage("a", 0, 2), stage("b", 2, 4)
    await asyncio.gather(pool.start(first), pool.start(last))
    path = hops(first, last)
    tokens = await decode_over_stages(pool, listener, path, 7, (1, 2, 3), 5)
    assert tokens == [null_token(7, position) for position in range(3, 8)]

    with pytest.raises(InputError, match="nowhere"):
        await pool.start(stage("c", executor="torch", checkpoint=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="needs 2 GPUs"):
        await pool.start(stage("c", device="cuda", tensor_parallel_size=2))

    victim = next(pid for pid in ray_processes() if "StageActor" in name_of(pid))
    os.kill(victim, signal.SIGKILL)
    await listener.wait(lambda: listener.deaths)
    ((lost, why),) = listener.deaths
    assert lost in "ab"
    assert why == "its Ray actor has died"
    await pool.start(first if lost == "a" else last)
    tokens = await decode_over_stages(pool, listener, path, 8, (1, 2), 3)
    assert tokens == [null_token(8, position) for position in range(2, 5)]

    alive = ray_processes()
    assert len(alive) > 3
    await pool.close()
    async with asyncio.timeout(30):
        while any("ray" in name_of(pid) for pid in alive):
            await asyncio.sleep(0.05)
    assert len(listener.deaths) == 1


def ray_processes() -> set[int]:
    """Processes of Ray below this one."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        if "ray" in name_of(int(entry.name)) and os.getpid() in ancestors(int(entry.name)):
            found.add(int(entry.name))
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            break
        found.append(pid)
    return found

"""A server whose steps take known seconds: real gateway and coordinator, workers that only wait.

    python benchmarks/known_server.py PLAN

Prints its address and serves until it is ended. The plan's cost model says how long steps take.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from penstock.cost.load import step_cost_from_dict
from penstock.plan.document import read_plan
from penstock.serve.coordinator.options import ServeOptions
from penstock.serve.coordinator.runtime import Runtime
from penstock.serve.gateway import GatewayServer, GatewaySettings, make_app
from penstock.serve.inline import InlinePool
from penstock.serve.launch import LaunchSettings, model_card


async def serve(path: Path) -> None:
    plan = read_plan(path)
    cost = step_cost_from_dict(plan.cost, plan.model)
    card = model_card(plan, LaunchSettings())
    runtime = Runtime(plan, InlinePool(), card, ServeOptions(executor="null"), cost=cost)
    await runtime.start()
    server = GatewayServer(make_app(runtime, GatewaySettings(log_requests=False)), port=0)
    serving = asyncio.ensure_future(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await serving
    await runtime.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))

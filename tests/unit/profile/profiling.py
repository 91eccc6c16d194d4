"""An engine whose every second is known, as its server and its client would report it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from penstock.cost.linear import DecodeLine, LinearCoefficients, LinearStepCost
from penstock.measure.loadgen.events import Stream
from penstock.measure.loadgen.outcome import Outcome
from penstock.measure.run import Run
from penstock.plan.plan import Plan
from penstock.profile.drive import Seen
from penstock.profile.probes import Probe
from penstock.serve.local import local_plan
from penstock.sim.engine_plans import simulate_engine_plan
from penstock.sim.options import SimulationOptions
from penstock.spec.model import ModelSpec
from penstock.spec.workload import Request, Workload

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}
HOST_S = 0.004
_APART_S = 1000.0


def known_plan(folder: Path) -> Plan:
    """One engine with the defaults of ``penstock serve``."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return local_plan(folder, kv_memory_bytes=64 << 20)


def known_cost(model: ModelSpec) -> LinearStepCost:
    """Prompts: 10 ms and 0.1 ms a token; decodes: 10 ms, 1 us a context token, 0.2 ms each."""
    line = DecodeLine(0.010, 1e-6, 2e-4)
    return LinearStepCost(model, LinearCoefficients(0.010, 1e-4, 0.0, line), 200_000)


def served(plan: Plan, wanted: Sequence[Probe], host_s: float = HOST_S) -> tuple[list[Seen], Run]:
    """What client and server report of ``wanted``, the probes far apart; ``host_s`` in between."""
    requests = [
        Request(0, _APART_S * i + (0.05 * number if probe.at_once else 0.0), prompt, output)
        for i, probe in enumerate(wanted, 1)
        for number, (prompt, output) in enumerate(probe.lengths)
    ]
    rows = (Request(0, 0.0, 8, 1), *requests)
    trace = tuple(
        Request(i, one.arrival_s, one.prompt_tokens, one.output_tokens)
        for i, one in enumerate(rows)
    )
    load = Workload("probes", 0.0, trace=trace)
    record = simulate_engine_plan(plan, load, known_cost(plan.model), SimulationOptions())
    seen, place = [], 1
    for probe in wanted:
        outcomes = []
        for i in range(place, place + probe.seqs):
            times = record.tokens.times_s[record.tokens.offsets[i] : record.tokens.offsets[i + 1]]
            stream = Stream(tokens=[(float(at) + host_s, 1) for at in times], done=True)
            sent_s = float(record.requests.arrival_s[i])
            outcomes.append(Outcome(trace[i], sent_s, stream, "finished"))
        seen.append(Seen(probe, outcomes))
        place += probe.seqs
    return seen, record

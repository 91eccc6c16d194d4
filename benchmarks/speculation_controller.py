"""CPU seconds and service of AdaServe, chain speculation and Penstock's controller.

python benchmarks/speculation_controller.py [--trace rps4.6.csv] [--model llama|qwen] [--seeds 3]

Needs the reference data (PENSTOCK_REFERENCE). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from penstock.experiments.adaserve.run import Measured, Simulation, run_simulation
from penstock.experiments.adaserve.systems import ADASERVE, LLAMA, PENSTOCK, QWEN
from penstock.experiments.reference import find_reference

SYSTEMS = (PENSTOCK, ADASERVE, "vLLM-Spec(4)")


def figures(runs: Sequence[Measured], cpu_s: float) -> dict[str, float]:
    """Means over seeds; CPU seconds of one run."""
    return {
        "attainment_pct": round(float(np.mean([m.attainment_pct[1.2] for m in runs])), 2),
        "attainment_sd": round(float(np.std([m.attainment_pct[1.2] for m in runs])), 2),
        "goodput_tok_s": round(float(np.mean([m.goodput_tok_s[1.2] for m in runs])), 1),
        "ttft_p50_s": round(float(np.mean([m.ttft_p50_s for m in runs])), 3),
        "ttft_p99_s": round(float(np.mean([m.ttft_p99_s for m in runs])), 3),
        "cpu_s": round(cpu_s / len(runs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", default="rps4.6.csv")
    parser.add_argument("--model", choices=("llama", "qwen"), default="llama")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    adaserve = find_reference(None, "adaserve") / "adaserve"
    model = LLAMA if arguments.model == "llama" else QWEN
    result: dict[str, object] = {"trace": arguments.trace, "model": model}
    for system in SYSTEMS:
        started = time.process_time()
        runs = [
            run_simulation(adaserve, Simulation(model, system, arguments.trace, 100 + seed))
            for seed in range(arguments.seeds)
        ]
        result[system] = figures(runs, time.process_time() - started)
        print(f"{system:14s} {result[system]}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

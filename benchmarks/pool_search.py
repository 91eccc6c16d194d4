"""CPU seconds of the pool search against AlpaServe's, as one JSON line.

python benchmarks/pool_search.py [--reference FOLDER] [--passes N]

Theirs: MP-search of AlpaServe (OSDI'23) in CPU seconds on two shared cores, compilation apart.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from penstock.experiments.alpaserve.cases import BERT, BertPool
from penstock.experiments.alpaserve.data import read_profiles
from penstock.experiments.alpaserve.policies import timed
from penstock.experiments.alpaserve.published import SPEED
from penstock.experiments.reference import find_reference
from penstock.plan.pool.improve import pool_search
from penstock.plan.pool.search import mp_search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, help="folder of published figures")
    parser.add_argument("--passes", type=int, default=3, help="the least of so many is printed")
    arguments = parser.parse_args()
    runs = find_reference(arguments.reference, "alpaserve") / "alpaserve" / "runs"
    profile = read_profiles(runs)[BERT]
    lines = []
    for entry in SPEED:
        problem = BertPool(entry.models, entry.gpus, entry.rate_rps).problem(profile)
        found, cpu_s = timed(partial(mp_search, problem), arguments.passes)
        ours, ours_s = timed(partial(pool_search, problem), 1)
        lines.append(
            {
                "models": entry.models,
                "gpus": entry.gpus,
                "requests": problem.traffic.num_requests,
                "theirs_cpu_s": entry.search_cpu_s,
                "cpu_s": round(cpu_s, 4),
                "times_faster": round(entry.search_cpu_s / cpu_s, 1),
                "attainment": round(found.outcome.attainment, 4),
                "our_search_cpu_s": round(ours_s, 4),
                "our_search_attainment": round(ours.outcome.attainment, 4),
            }
        )
    print(json.dumps({"benchmark": "pool_search", "cases": lines}))


if __name__ == "__main__":
    main()

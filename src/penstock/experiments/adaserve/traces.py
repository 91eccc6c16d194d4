"""The published workloads: compact traces, and output lengths, which are drawn."""

from __future__ import annotations

from pathlib import Path
from random import Random

from penstock.errors import SpecError
from penstock.experiments.reference import number, read_table
from penstock.policy.speculation.slo import TpotLimit, limit_of_ratio
from penstock.spec.workload import Request

FULL_SHARE = 0.6
SHORTEST = 20
MAX_MODEL_LEN = 2048


def read_trace(
    adaserve: Path, name: str, seed: int, output_cap: int | None = None
) -> tuple[list[Request], dict[str, TpotLimit]]:
    """Read ``traces/<name>`` as requests and limits by class. Raises ``InputError``.

    The traces give only the generation limit; outputs stop earlier at an end of sequence whose
    place is not published. As the mean is (204 to 211 of 256), a share of 0.6 runs to the limit
    and the rest is uniform from 20 (specification, section 8). Lengths depend on ``seed`` and
    the row alone: all systems get the same ones.
    """
    path = adaserve / "traces" / name
    columns = ("t_ms", "category", "slo_ratio", "input_tokens", "output_cap")
    rng = Random(f"{seed}/{name.partition('_prop')[0]}/outputs")
    requests: list[Request] = []
    limits: dict[str, TpotLimit] = {}
    for row in read_table(path, *columns):
        category = row["category"]
        limit = limit_of_ratio(number(row, "slo_ratio", path))
        if limits.setdefault(category, limit) != limit:
            raise SpecError(
                "one category has two limits", source=path, key=category, fix="restore the file"
            )
        cap = int(number(row, "output_cap", path)) if output_cap is None else output_cap
        full = rng.random() < FULL_SHARE
        early = rng.randrange(SHORTEST, 256)
        prompt = int(number(row, "input_tokens", path))
        output = min(cap, 256 if full else early, MAX_MODEL_LEN - prompt)
        requests.append(
            Request(
                len(requests),
                number(row, "t_ms", path) / 1000.0,
                prompt,
                output,
                category,
            )
        )
    return requests, limits

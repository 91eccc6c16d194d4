"""MaverIQ's reference files as values."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from penstock.cost.fingerprint import (
    Configuration,
    Fingerprint,
    ProfileRow,
    fingerprints,
    read_profile,
)
from penstock.cost.fingerprint_maveriq import Exponents, MaverIQEstimator, read_exponents
from penstock.errors import InputError
from penstock.experiments.reference import Record, number, read_table
from penstock.spec.load import load_model
from penstock.spec.minute_bins import BinTrace, bin_trace
from penstock.spec.model import ModelSpec
from penstock.spec.variants import Precision, Variant

MODELS = ("falcon-7b", "falcon-40b", "gptj-6b", "llama-2-7b", "llama-2-13b", "llama-2-70b")
GPUS = 8
GPU_BYTES = 47.99 * 2.0**30
# "Cut to at most 923 tokens": the mean is not published; 900 is assumed. Questions of one line.
LONG_PROMPT_TOKENS, SHORT_PROMPT_TOKENS = 900, 16
OUTPUT_TOKENS = 20
LONG = "fingerprint_long_prompt_bs1.csv"
SHORT = "fingerprint_short_prompt_bs1_bs2.csv"
FULL = "full_model_long_prompt_bs1.csv"
FULL_BATCHED = "full_model_short_prompt_batched.csv"


@lru_cache(maxsize=8)
def profile(path: Path) -> tuple[ProfileRow, ...]:
    """The rows of a profile, read once."""
    return read_profile(path)


@lru_cache(maxsize=8)
def model_of(name: str) -> ModelSpec:
    return load_model({"gptj-6b": "gpt-j-6b"}.get(name, name))


def cuts(maveriq: Path, name: str) -> Mapping[tuple[str, Precision], Fingerprint]:
    return fingerprints(profile(maveriq / "profiles" / name))


def of_model(
    found: Mapping[tuple[str, Precision], Fingerprint], model: str
) -> Mapping[Precision, Fingerprint]:
    return {precision: one for (name, precision), one in found.items() if name == model}


def exponents(maveriq: Path) -> Mapping[Precision, Exponents]:
    return read_exponents(maveriq / "latency_exponents.csv")


def published_estimator(
    found: Mapping[tuple[str, Precision], Fingerprint],
    powers: Mapping[Precision, Exponents],
    model: str,
) -> MaverIQEstimator:
    return MaverIQEstimator(model_of(model).num_hidden_layers, of_model(found, model), powers)


def variants(maveriq: Path, model: str) -> tuple[Variant, ...]:
    """Stored forms of ``model`` with their MMLU score as a share of that of FP16."""
    path = maveriq / "mmlu_relative_accuracy.csv"
    rows = read_table(path, "model", "dtype", "int8_kv", "pruning", "accuracy_pct_of_fp16")
    return tuple(
        Variant(
            Precision(row["dtype"], row["int8_kv"] == "True"),
            number(row, "accuracy_pct_of_fp16", path) / 100,
        )
        for row in rows
        if row["model"] == model and row["pruning"] == "None"
    )


def configurations(maveriq: Path, model: str) -> tuple[Configuration, ...]:
    """Those that ran as a whole model: the set the published selector chooses from."""
    rows = profile(maveriq / "profiles" / FULL)
    return tuple(dict.fromkeys(row.configuration for row in rows if row.model == model))


@dataclass(frozen=True, slots=True)
class ModelSet:
    """Models in the order in which they load, ids from 1, and the bin of each."""

    name: str
    models: tuple[str, ...]
    load_bins: tuple[int, ...]


def model_set(maveriq: Path, name: str) -> ModelSet:
    path = maveriq / "model_sets.csv"
    rows = [r for r in read_table(path, "model_set", "model", "load_bin") if r["model_set"] == name]
    if not rows:
        raise InputError(f"{path}: has no model set {name!r}; the reference is not complete")
    bins = tuple(int(row["load_bin"]) for row in rows)
    return ModelSet(name, tuple(row["model"] for row in rows), bins)


def azure_counts(maveriq: Path, trace: str) -> tuple[int, ...]:
    """Requests per minute of the Azure trace ``code`` or ``conversation``."""
    column = f"{trace}_requests"
    rows = read_table(maveriq / "azure_minute_bins.csv", column)
    return tuple(int(row[column]) for row in rows if row[column])


def our_trace(maveriq: Path, models: ModelSet, trace: str, scale: float) -> BinTrace:
    return bin_trace(azure_counts(maveriq, trace), scale, models.load_bins)


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    time_s: float
    event: str
    model: int


def logged_trace(path: Path) -> tuple[LoggedEvent, ...]:
    """A logged trace; models from 0. Raises ``InputError``."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            return tuple(
                LoggedEvent(float(row["t_s"]), row["event"], int(row["model_id"]) - 1)
                for row in csv.DictReader(stream)
            )
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


@dataclass(frozen=True, slots=True, order=True)
class RunKey:
    """Which serving run: the first columns of the result files."""

    system: str
    model_set: str
    intent: str
    trace: str
    scale: float
    slo_factor: float

    def __str__(self) -> str:
        words = [self.system, self.model_set, self.trace, f"{self.scale:g}"]
        words += [self.intent] if self.intent not in {"", "None"} else []
        words += [f"run at {self.slo_factor:g}x"] if self.slo_factor else []
        return " ".join(words)


def run_key(row: Record) -> RunKey:
    return RunKey(
        row["system"],
        row["model_set"],
        row["intent"],
        row["trace"],
        float(row["rate_scale"]),
        float(row["slo_factor_of_run"]),
    )


def by_run(
    path: Path, *columns: str, wanted: Callable[[RunKey], bool] = lambda _: True
) -> Mapping[RunKey, Sequence[Record]]:
    """The rows of a result file, grouped by run in order of appearance."""
    found: dict[RunKey, list[Record]] = {}
    for row in read_table(path, "system", "rate_scale", "slo_factor_of_run", *columns):
        key = run_key(row)
        if wanted(key):
            found.setdefault(key, []).append(row)
    return found

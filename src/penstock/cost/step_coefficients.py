"""Named coefficients of the step roofline, read from ``step_coefficients.yaml``.

Shares are of a datasheet peak; all else is seconds or plain counts. Kernels follow the
architecture, so that a chip without tables borrows those of its generation; what is known of the
chip itself (power limits, slower memory) is one factor each on compute and memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from penstock.spec.hardware import Accelerator, Interconnect

BUNDLED = Path(__file__).with_name("step_coefficients.yaml")


@dataclass(frozen=True, slots=True)
class ProductShare:
    """Matrix products in one weight format: share of the peak, and the floor of a kernel."""

    compute: float
    kernel_s: float


@dataclass(frozen=True, slots=True)
class AttentionShare:
    """Attention kernels.

    prefill_compute  share of the bf16 peak on a prompt
    prefill_memory   share of the bandwidth while reading queries and writing outputs
    decode_compute   share of the bf16 peak when decoding (binds latent attention only)
    decode_memory    share of the bandwidth reading the KV cache
    kernel_s         floor, KV write included
    head_s           per (sequence, query head) when decoding
    """

    prefill_compute: float
    prefill_memory: float
    decode_compute: float
    decode_memory: float
    kernel_s: float
    head_s: float


@dataclass(frozen=True, slots=True)
class ExpertShare:
    """Routed experts.

    compute      share of the peak by weight format
    memory       share of the bandwidth reading touched experts, by weight format
    kernel_s     floor of routing, both products and the sum
    route_s      per token
    padding      rows every touched expert wastes
    """

    compute: Mapping[str, float]
    memory: Mapping[str, float]
    kernel_s: float
    route_s: float
    padding: float


@dataclass(frozen=True, slots=True)
class Architecture:
    """A GPU generation. ``quantise`` is the share of bandwidth while quantising activations."""

    products: Mapping[str, ProductShare]
    memory: float
    quantise: float
    attention: AttentionShare
    latent: AttentionShare
    experts: ExpertShare


@dataclass(frozen=True, slots=True)
class Chip:
    """An accelerator: its generation, its own factors, and how well it is known.

    ``basis``: ``measured`` has tables of all operators, ``layers`` of layers or products only
    (they set ``compute`` and ``memory``), ``generation`` none. ``usable_memory`` is the share of
    the printed memory an engine sees, where it differs from ``Memory.usable``.
    """

    architecture: str
    basis: str
    compute: float = 1.0
    memory: float = 1.0
    usable_memory: float | None = None


@dataclass(frozen=True, slots=True)
class LinkShare:
    """All-reduce inside one node: share of the link, floor between two, growth with members."""

    bandwidth: float
    latency_s: float
    growth: float


@dataclass(frozen=True, slots=True)
class EngineHost:
    """What an engine adds to its kernels.

    kernel_share     share of the kernels' floors that overlap and fusion leave
    layer_s          small kernels and gaps of one layer
    step_s           host time of a step that the GPU waits for
    request_s        between client and scheduler, once per request: HTTP, tokenising, streaming
    prompt_token_s   the same per prompt token
    """

    kernel_share: float
    layer_s: float
    step_s: float
    request_s: float
    prompt_token_s: float


@dataclass(frozen=True, slots=True)
class Shared:
    """Figures of all engines.

    sequence_s       host time of a step per sequence in it (sampling, detokenising, block tables)
    prefill_s        more host time of a step with prompt tokens (it leaves the decode graph)
    passes           times a hidden state goes through memory outside products, per layer
    expert_layer_s   more small kernels and gaps of a layer with experts (router, gating, sums)
    latent_floor     share of the measured floor of latent attention left inside CUDA graphs
    eager_layer_s    host time to launch one layer without CUDA graphs
    """

    sequence_s: float
    prefill_s: float
    passes: float
    expert_layer_s: float
    latent_floor: float
    eager_layer_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """``usable`` share of the printed memory an engine sees; ``reserved_bytes`` per GPU for the
    runtime, communication buffers and CUDA graphs."""

    usable: float
    reserved_bytes: float


@dataclass(frozen=True, slots=True)
class Band:
    """Ratios measured / predicted at the 10th and 90th percentile of the fit."""

    low: float
    high: float


@dataclass(frozen=True)
class StepCoefficients:
    """Everything the step roofline knows beside datasheets."""

    architectures: Mapping[str, Architecture]
    other: Architecture
    chips: Mapping[str, Chip]
    links: Mapping[str, LinkShare]
    engines: Mapping[str, EngineHost]
    shared: Shared
    memory: Memory
    bands: Mapping[str, Band]
    source: str
    error: str
    domain: str
    notes: tuple[str, ...]

    def chip(self, accelerator: Accelerator) -> Chip | None:
        """What is known of ``accelerator``: by its name, else the family it begins with
        (``A100-40GB`` is an ``A100``)."""
        name = accelerator.name.upper().replace("_", "-")
        families = {family.upper(): chip for family, chip in self.chips.items()}
        while name:
            if name in families:
                return families[name]
            name = name.rpartition("-")[0]
        return None

    def architecture(self, chip: Chip | None) -> Architecture:
        return self.other if chip is None else self.architectures[chip.architecture]

    def link(self, interconnect: Interconnect) -> LinkShare:
        """Figures of an interconnect; a bare board talks over PCIe."""
        return self.links.get(interconnect, self.links["pcie"])


@cache
def bundled_step_coefficients() -> StepCoefficients:
    """The coefficients that come with the package, read once."""
    return read_step_coefficients(BUNDLED)


def read_step_coefficients(path: Path) -> StepCoefficients:
    """Read a file written by ``python -m penstock.cost.step_fit --write``."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return StepCoefficients(
        architectures={k: _architecture(v) for k, v in raw["architectures"].items()},
        other=_architecture(raw["other_architectures"]),
        chips={str(name): Chip(**values) for name, values in raw["chips"].items()},
        links={name: LinkShare(**values) for name, values in raw["links"].items()},
        engines={name: EngineHost(**values) for name, values in raw["engines"].items()},
        shared=Shared(**raw["shared"]),
        memory=Memory(**raw["memory"]),
        bands={name: Band(**values) for name, values in raw["bands"].items()},
        source=raw["source"],
        error=raw["error"],
        domain=raw["domain"],
        notes=tuple(raw["notes"]),
    )


def _architecture(raw: Mapping[str, object]) -> Architecture:
    values: dict[str, object] = dict(raw)
    products: Mapping[str, Mapping[str, float]] = values.pop("products")  # type: ignore[assignment]
    groups = {
        "attention": AttentionShare(**values.pop("attention")),  # type: ignore[arg-type]
        "latent": AttentionShare(**values.pop("latent")),  # type: ignore[arg-type]
        "experts": ExpertShare(**values.pop("experts")),  # type: ignore[arg-type]
    }
    shares = {name: ProductShare(**value) for name, value in products.items()}
    return Architecture(products=shares, **groups, **values)  # type: ignore[arg-type]

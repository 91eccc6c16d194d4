"""The strict form of a workload file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from penstock.errors import SpecError
from penstock.spec.popularity import PopularityLaw
from penstock.spec.strict import Count, Duration, Rate, Strict
from penstock.spec.units import parse_duration
from penstock.spec.workload import parse_multiple

TPOT_FORMS = (
    'give a time such as "50 ms", a multiple of the time per token at near-zero load such as '
    '"1.2x", or "best effort"'
)
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def _one_of(data: Any, names: Sequence[str]) -> Any:
    """Refuse a mapping that does not hold exactly one of ``names``."""
    if isinstance(data, dict) and sum(data.get(name) is not None for name in names) != 1:
        raise PydanticCustomError(
            "one_of", "{problem}", {"problem": f"give exactly one of {', '.join(names)}"}
        )
    return data


class LogNormalFile(Strict):
    """By ``mean`` and ``cv`` (before clipping), or ``median`` and ``sigma`` (of the log)."""

    mean: Positive | None = None
    cv: Positive | None = None
    median: Positive | None = None
    sigma: Annotated[float, Field(ge=0)] | None = None
    min: Count = 1
    max: Count = 1 << 20

    @model_validator(mode="after")
    def _one_form(self) -> LogNormalFile:
        by_mean = self.mean is not None and self.cv is not None
        by_median = self.median is not None and self.sigma is not None
        if by_mean == by_median:
            raise PydanticCustomError(
                "form", "{problem}", {"problem": "give mean and cv, or median and sigma"}
            )
        return self


class DistributionFile(Strict):
    """One of: uniform, lognormal, quantiles."""

    uniform: tuple[Count, Count] | None = None
    lognormal: LogNormalFile | None = None
    quantiles: list[tuple[Fraction, Positive]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _choice(cls, data: Any) -> Any:
        return _one_of(data, ("uniform", "lognormal", "quantiles"))


class LengthsFile(Strict):
    """A preset; or ``prompt`` and ``output`` (a number or a distribution each); or the lengths of
    a trace file, or a table of pairs, drawn with replacement.
    """

    preset: str | None = None
    prompt: Count | DistributionFile | None = None
    output: Count | DistributionFile | None = None
    correlation: Annotated[float, Field(ge=-1, le=1)] = 0.0
    trace: str | None = None
    sha256: str | None = None
    table: list[tuple[Count, Count]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _choice(cls, data: Any) -> Any:
        _one_of(data, ("preset", "prompt", "trace", "table"))
        if isinstance(data, dict) and (data.get("prompt") is None) != (data.get("output") is None):
            raise PydanticCustomError(
                "pair", "{problem}", {"problem": "prompt and output go together"}
            )
        return data


class RateFile(Strict):
    rate: Rate = Field(
        description="requests per second",
        validation_alias=AliasChoices("rate", "request_rate"),
    )


class GammaFile(RateFile):
    cv: Positive


class BucketFile(RateFile):
    """Counts per bucket, inline or in a CSV with a column ``arrivals``."""

    histogram: list[Annotated[int, Field(ge=0)]] | str
    bucket: Duration = 3.0


class CountFile(Strict):
    count: Count


class ClosedLoopFile(Strict):
    concurrency: Count = Field(validation_alias=AliasChoices("concurrency", "max_concurrency"))
    interval: Duration = 0.1


class SaturatingFile(Strict):
    initial: Count = 20
    feed_mark: Fraction = 0.8
    interval: Duration = 0.1


class IntervalsFile(Strict):
    """Gamma arrivals that change every ``interval``: one rate and one ``cv`` each."""

    interval: Duration
    rates: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)
    cvs: list[Positive] = Field(min_length=1)


class ArrivalsFile(Strict):
    """One of: poisson, gamma, uniform, bucket, all_at_once, intervals, times, closed_loop,
    saturating.
    """

    poisson: RateFile | None = None
    gamma: GammaFile | None = None
    uniform: RateFile | None = None
    bucket: BucketFile | None = None
    all_at_once: CountFile | None = None
    intervals: IntervalsFile | None = None
    times: list[Duration] | None = Field(default=None, description="explicit, ascending")
    closed_loop: ClosedLoopFile | None = None
    saturating: SaturatingFile | None = None

    @model_validator(mode="before")
    @classmethod
    def _choice(cls, data: Any) -> Any:
        return _one_of(data, tuple(cls.model_fields))


def _tpot(value: object) -> float | str | None:
    """Seconds; a multiple of the baseline, still as text; None for "best effort"."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if value is None or text == "best effort":
        return None
    try:
        if parse_multiple(text) is not None:
            return text
        return parse_duration(value, positive=True)
    except SpecError as error:
        unread = error.problem == "not a duration"
        problem = "not a limit on the time per output token" if unread else error.problem
        raise PydanticCustomError(
            "tpot", "{problem}", {"problem": problem, "fix": TPOT_FORMS}
        ) from None


TpotField = Annotated[
    float | str | None,
    BeforeValidator(_tpot),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}, {"type": "null"}],
            "description": TPOT_FORMS,
        }
    ),
]


class LimitsFile(Strict):
    """Upper limits; left out = no limit."""

    ttft: Duration | None = None
    tpot: TpotField = None
    itl: Duration | None = None
    e2e: Duration | None = None


class ClassFile(LimitsFile):
    """A share of the requests and the limits they are promised."""

    name: str = Field(min_length=1)
    share: Positive = 1.0
    priority: int = 0


class TraceSpecFile(Strict):
    """A trace file, the window taken out of it, and how much faster to play it."""

    file: str
    start: Duration = 0.0
    end: Duration | None = None
    rate_scale: Positive = 1.0
    rate: Rate | None = Field(default=None, description="play at this mean rate instead")
    max_requests: Count | None = None


class RequestFile(Strict):
    arrival: Duration
    prompt_tokens: Count
    output_tokens: Count
    class_name: str = Field(default="", alias="class")
    model: str = ""
    prefix_hashes: tuple[int, ...] = ()


class StreamFile(Strict):
    """The traffic of one model of several. The class of its requests has the model's name, unless
    it names classes.
    """

    name: str = Field(min_length=1)
    arrivals: ArrivalsFile | None = None
    lengths: LengthsFile | str | None = None
    classes: list[ClassFile] = Field(default_factory=list)
    slo: LimitsFile | None = None
    priority: int = 0


ModelNames = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class PopularityFile(RateFile):
    """One rate shared by models, the most popular first; ``cv`` left out = Poisson arrivals."""

    models: ModelNames | None = None
    cv: Positive | None = None
    law: PopularityLaw = "power_law"
    exponent: Annotated[float, Field(ge=0)] = 0.5


class FunctionsFile(Strict):
    """An Azure Functions trace: ``counts`` a minute (2019) or single ``invocations`` (2021)."""

    counts: str | None = None
    invocations: str | None = None
    models: ModelNames | None = None
    mapping: Literal["stripe", "block"] = "stripe"
    rate_scale: Positive = 1.0
    cv_scale: Positive = 1.0
    start: Duration = 0.0
    end: Duration | None = None

    @model_validator(mode="before")
    @classmethod
    def _choice(cls, data: Any) -> Any:
        return _one_of(data, ("counts", "invocations"))


class MinuteBinsFile(Strict):
    """Requests per minute, replayed bin by bin; model i is loaded at bin ``load_bins[i]``.

    ``counts`` are inline or the ``column`` of a CSV file. A bin lasts ``replay``, its arrivals lie
    in the first ``window``, each load delays what follows by ``load``. Default: one more model
    every bin.
    """

    counts: list[Annotated[int, Field(ge=0)]] | str
    column: str = "requests"
    scale: Positive = 1.0
    models: ModelNames | None = None
    load_bins: list[Annotated[int, Field(ge=0)]] | None = None
    replay: Duration = 30.0
    window: Duration = 29.9
    load: Duration = 90.0
    seed: Annotated[int, Field(strict=True, ge=0)] = 42


class WorkloadFile(Strict):
    """What is asked of the fleet: of one model, or of several (models, popularity, functions,
    minute_bins).
    """

    name: str = ""
    description: str = ""
    duration: Duration | None = None
    warmup: Duration = 0.0
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    lengths: LengthsFile | str | None = None
    arrivals: ArrivalsFile | None = None
    trace: TraceSpecFile | str | None = None
    requests: list[RequestFile] | None = None
    models: list[StreamFile] | None = Field(default=None, min_length=1)
    popularity: PopularityFile | None = None
    functions: FunctionsFile | None = None
    minute_bins: MinuteBinsFile | None = None
    classes: list[ClassFile] = Field(default_factory=list)
    slo: ClassFile | None = Field(default=None, description="limits when there is one class")

    @model_validator(mode="before")
    @classmethod
    def _name_the_only_class(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("slo"), dict):
            return {**data, "slo": {"name": "all", **data["slo"]}}
        return data

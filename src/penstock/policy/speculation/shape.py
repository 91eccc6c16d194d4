"""How deep and how wide the draft goes, by the number of active requests."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from penstock.errors import SpecError


@dataclass(frozen=True, slots=True)
class AdaptiveShape:
    """Depth and width that share out fixed token budgets (AdaServe section 5).

    d = clip(floor(B1 / (n + c1)) - 1, D_min, D_max)   B1 = verified tokens of a step
    w = clip(floor(B2 / n) + c2, 1, W_max)             B2 = draft tokens of a draft pass
    """

    verify_tokens: int
    draft_tokens: int
    min_depth: int
    max_depth: int
    max_width: int
    depth_offset: float = 0.0
    width_offset: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_depth <= self.max_depth:
            raise SpecError(
                "the depths of speculation are not ordered",
                key="min_depth",
                value=(self.min_depth, self.max_depth),
                fix="give 1 <= min_depth <= max_depth",
            )
        if min(self.verify_tokens, self.draft_tokens, self.max_width) < 1:
            raise SpecError("budgets and width of speculation must be at least 1", key="shape")

    def depth(self, active: int) -> int:
        wanted = floor(self.verify_tokens / (active + self.depth_offset)) - 1
        return max(self.min_depth, min(self.max_depth, wanted))

    def width(self, active: int) -> int:
        wanted = floor(self.draft_tokens / active) + self.width_offset
        return max(1, min(self.max_width, wanted))

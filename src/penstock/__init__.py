"""Plan, simulate and serve large language models on the GPUs you really have.

The verbs are functions: ``penstock.plan(...)``, ``penstock.simulate(...)``,
``penstock.compare(...)``; they are documented and typed in ``penstock.api``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from penstock import plan

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "plan", "simulate"]


class _PlanVerb(ModuleType):
    """``penstock.plan`` is a package and, called, the verb of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from penstock import api  # noqa: PLC0415 - the verbs load what they need when called

        return api.plan(*args, **kwargs)


plan.__class__ = _PlanVerb


def __getattr__(name: str) -> Any:
    if name in ("simulate", "compare"):
        from penstock import api  # noqa: PLC0415 - see above

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

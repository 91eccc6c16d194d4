"""How people spell names, and what they probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def normalise(name: str) -> str:
    """Fold case and drop the separators people leave out: ``Llama-2_70B`` -> ``llama270b``."""
    return "".join(c for c in name.lower() if c not in "-_. ")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A fix that names the nearest known word, or lists what is known."""
    names = list(known)
    folded = {normalise(name): name for name in reversed(names)}
    near = difflib.get_close_matches(normalise(word), list(folded), n=1, cutoff=0.55)
    if near:
        return f"did you mean {folded[near[0]]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}" if names else "nothing is known here"

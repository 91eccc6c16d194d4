"""The text: sources of the Python standard library, as files and as questions with answers."""

import ast
import hashlib
import random
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path

# Tests, generated tables and second copies teach a small model nothing but their own bytes.
SKIPPED = frozenset(
    {"site-packages", "test", "tests", "idle_test", "encodings", "lib2to3", "__pycache__"}
)
HELD_OUT_EVERY = 25
MAX_ANSWER_CHARS = 700


@dataclass(frozen=True, slots=True)
class Sample:
    """One question and its answer: a docstring's first line, and the function it belongs to."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Text to train on and text kept apart, with the digest of both."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    samples: tuple[Sample, ...]
    held_out_names: tuple[str, ...]
    sha256: str


def read_corpus(seed: int, max_samples: int) -> Corpus:
    """Read the standard library of the running Python; a file's name decides its side."""
    root = Path(sysconfig.get_path("stdlib"))
    train: list[str] = []
    held_out: list[str] = []
    names: list[str] = []
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED & set(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest.update(text.encode())
        if is_held_out(name.as_posix()):
            held_out.append(text)
            names.append(name.as_posix())
        else:
            train.append(text)
    samples = [sample for text in train for sample in samples_of(text)]
    random.Random(seed).shuffle(samples)
    return Corpus(
        tuple(train),
        tuple(held_out),
        tuple(samples[:max_samples]),
        tuple(names),
        digest.hexdigest(),
    )


def is_held_out(name: str) -> bool:
    """Whether a file is kept for measurement: one name in `HELD_OUT_EVERY`, by hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_OUT_EVERY == 0


def samples_of(text: str) -> list[Sample]:
    """Make a sample of each short function with a docstring; none when the text does not parse."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    # ast.get_source_segment splits the whole file for every function: minutes instead of seconds.
    lines = text.split("\n")
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        doc = ast.get_docstring(node)
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if not doc or len(source) > MAX_ANSWER_CHARS:
            continue
        question = f"Write the function {node.name}. {doc.splitlines()[0]}"
        found.append(Sample(question, textwrap.dedent(source)))
    return found

"""``penstock doctor``: what is installed, what is missing for which verb, how to fix it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from penstock import __version__
from penstock.cli.common import Format, print_json

BASE = ("numpy", "highspy", "numba", "pydantic", "PyYAML", "typer", "rich", "Jinja2")
OPTIONAL = {
    "torch": ("'penstock serve' and 'profile'", "pip install 'penstock[serve]'"),
    "ray": ("'penstock serve' on Ray and 'sweep --ray'", "pip install 'penstock[serve]'"),
    "fastapi": ("'penstock serve'", "pip install 'penstock[serve]'"),
    "gurobipy": ("helix-milp with Gurobi instead of HiGHS", "pip install gurobipy"),
}
MINIMUM_FREE_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``needed_for`` is "" when all is well."""

    name: str
    found: str
    ok: bool
    needed_for: str = ""
    fix: str = ""


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Finding]:
    findings = []
    for package in BASE:
        version = _version_of(package)
        findings.append(
            Finding(package, version, True)
            if version
            else Finding(package, "missing", False, "every verb", "pip install penstock")
        )
    for package, (purpose, fix) in OPTIONAL.items():
        version = _version_of(package)
        findings.append(
            Finding(package, version, True)
            if version
            else Finding(package, "not installed", True, purpose, fix)
        )
    return findings


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = shutil.disk_usage(Path.cwd()).free
    cache = Path(os.environ.get("NUMBA_CACHE_DIR", Path(__file__).parents[1] / "plan" / "search"))
    cached = os.access(cache, os.W_OK)
    return [
        Finding("penstock", __version__, True),
        Finding(
            "python",
            platform.python_version(),
            sys.version_info >= (3, 11),
            "" if sys.version_info >= (3, 11) else "every verb",
            "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
        ),
        Finding("cores", str(cores), True),
        Finding(
            "free disk",
            f"{free / 1e9:.1f} GB",
            free > MINIMUM_FREE_BYTES,
            "" if free > MINIMUM_FREE_BYTES else "writing runs and reports",
            "" if free > MINIMUM_FREE_BYTES else "free some disk space",
        ),
        Finding(
            "compiled-kernel cache",
            "writable" if cached else "read-only",
            True,
            "" if cached else "a fast start of 'penstock plan' (the kernel compiles at each start)",
            "" if cached else "set NUMBA_CACHE_DIR to a writable folder",
        ),
    ]


def doctor(
    output_format: Format = typer.Option(Format.table, "--format", help="How to print."),
) -> None:
    """Say what is installed, what is missing for which verb, and how to fix it.

    Example: penstock doctor
    """
    findings = _machine() + _packages()
    healthy = all(finding.ok for finding in findings)
    if output_format is Format.json:
        print_json({"ok": healthy, "findings": [_row(finding) for finding in findings]})
    else:
        for finding in findings:
            line = f"{'ok ' if finding.ok else 'BAD'}  {finding.name:24} {finding.found}"
            if finding.needed_for:
                line += f"; needed for {finding.needed_for}: {finding.fix}"
            print(line)
    if not healthy:
        raise typer.Exit(2)


def _row(finding: Finding) -> dict[str, object]:
    return {
        "name": finding.name,
        "found": finding.found,
        "ok": finding.ok,
        "needed_for": finding.needed_for,
        "fix": finding.fix,
    }

"""``penstock replay-ops``: SDS's operations file against a server that runs, at its times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from penstock.cli.common import note, positive

if TYPE_CHECKING:
    import httpx

    from penstock.spec.availability import Operation, PoolRole

_ANSWER_S = 600.0


def replay_ops(
    operations: Path = typer.Argument(..., help="SDS's operations file (JSON)."),
    url: str = typer.Option("http://127.0.0.1:8000", "--url", help="Address of the server."),
    speed: float = typer.Option(1.0, "--speed", help="Play the file this many times as fast."),
    api_key: str | None = typer.Option(None, "--api-key", help="Key of the server."),
) -> None:
    """Add, remove and change engines of a server as an operations file says.

    Example: penstock replay-ops ops.json --url http://127.0.0.1:8000 --speed 10
    """
    from importlib.util import find_spec

    from penstock.errors import InputError
    from penstock.spec.availability import read_operations

    positive(speed, "--speed")
    if not operations.is_file():
        raise InputError(f"{operations}: file not found; check the path")
    if find_spec("httpx") is None:
        raise InputError("replay-ops needs httpx; install it with pip install 'penstock[serve]'")
    import httpx

    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_ANSWER_S) as client:
            plays = read_operations(operations, _roles(client))
            _replay(client, plays, speed)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"--url: no Penstock server answers at {url} ({error})") from None


def _roles(client: httpx.Client) -> dict[int, PoolRole]:
    """Roles of the engines by their number: their place in the plan."""
    found: dict[int, PoolRole] = {}
    for number, engine in enumerate(_checked(client.get("/admin/engines"))["engines"]):
        if engine["role"] in ("prefill", "decode"):
            found[number] = engine["role"]
    return found


def _replay(client: httpx.Client, operations: Sequence[Operation], speed: float) -> None:
    """Send each operation at its time, or when the one before it is done."""
    start_s = time.monotonic()
    for operation in operations:
        time.sleep(max(0.0, start_s + operation.time_s / speed - time.monotonic()))
        body = _body(operation)
        sent_s = time.monotonic()
        done = _checked(client.post("/update_resources", json=body))
        details = ", ".join(f"{key} {value}" for key, value in done.items())
        seconds = time.monotonic() - sent_s
        note(
            f"{operation.time_s:g} s: {body['operation']} {body['params']}: {details}"
            f" ({seconds:.2f} s)"
        )


def _body(operation: Operation) -> dict[str, Any]:
    number, role, old = operation.gpu, operation.role, operation.old_role
    if role is None:
        return {"operation": "remove", "params": [number]}
    if old is None:
        return {"operation": "add", "params": [role, number]}
    return {"operation": "change", "params": [old, number, role, number]}


def _checked(response: httpx.Response) -> dict[str, Any]:
    """The answer. Raises ``InputError`` with the server's reason where it refuses."""
    from penstock.errors import InputError

    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise InputError(f"{response.url} is no Penstock server (HTTP {response.status_code})")
    if response.status_code != 200:
        error = answer.get("error", answer)
        reason = error.get("message", error) if isinstance(error, dict) else error
        raise InputError(f"{response.url} refuses: {reason}")
    return answer

"""``penstock deploy``: models of a running server come, move and go, as an intent says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from penstock.cli.common import Format, duration_of, note, print_json

if TYPE_CHECKING:
    import httpx

_ANSWER_S = 3600.0
_CHANGED = ("started", "ended", "kept", "restarted_requests")


def deploy(
    model: str | None = typer.Argument(
        None, help="Name of the model, or the folder of its checkpoint; default: list all."
    ),
    url: str = typer.Option("http://127.0.0.1:8000", "--url", help="Address of the server."),
    checkpoint: str | None = typer.Option(
        None, "--checkpoint", help="Folder on the server's machine; default: MODEL."
    ),
    intent: str = typer.Option(
        "min_latency", "--intent", help="min_latency, min_cost, min_memory or min_gpu_cost."
    ),
    slo_latency: str | None = typer.Option(
        None, "--slo-latency", help="Seconds a batch must stay below, such as 2s."
    ),
    accuracy_floor: float | None = typer.Option(
        None, "--accuracy-floor", help="Least share of the unquantised model's accuracy."
    ),
    precisions: str | None = typer.Option(
        None, "--precisions", help="Those allowed, such as float32,bfloat16:0.99 (accuracy)."
    ),
    tokens: str | None = typer.Option(
        None, "--tokens", help="Prompt and output tokens of the latency, as 512,128."
    ),
    batch: int = typer.Option(1, "--batch", help="Requests of the latency, at once."),
    replicas: int = typer.Option(1, "--replicas", help="Engines of the model."),
    pipeline: int | None = typer.Option(
        None, "--pipeline-parallel-size", "--pp", help="Keep to so many stages."
    ),
    tensor: int | None = typer.Option(
        None, "--tensor-parallel-size", "--tp", help="Keep to so many ranks a stage."
    ),
    kv_memory: str | None = typer.Option(None, "--kv-memory", help="KV memory of an engine."),
    priority: int = typer.Option(0, "--priority", help="Higher first on shared nodes."),
    fingerprint: Path | None = typer.Option(
        None, "--fingerprint", help="What was measured of the model (profile --fingerprint)."
    ),
    pool: Path | None = typer.Option(None, "--pool", help="Go over to this whole pool plan."),
    remove: bool = typer.Option(False, "--remove", help="Stop serving the model."),
    force: bool = typer.Option(False, "--force", help="End its requests that still run."),
    drain: str | None = typer.Option(
        None, "--drain", help="What requests of engines that go may take to finish."
    ),
    api_key: str | None = typer.Option(None, "--api-key", help="Key of the server."),
    output: Format = typer.Option(Format.table, "--format", help="table or json."),
) -> None:
    """Serve one more model on a running server, move it, or remove it.

    Example: penstock deploy models/tiny --intent min_cost --slo-latency 2s
    """
    from penstock.errors import InputError, SpecError

    drain_s = None if drain is None else duration_of(drain, "--drain")
    if pool is not None and (model is not None or remove):
        raise SpecError("a pool plan names all models", key="--pool", fix="leave MODEL out")
    if remove and model is None:
        raise SpecError("which model", key="--remove", fix="name it")
    body: dict[str, Any] | None = None
    if model is not None and not remove:
        body = {
            **_name(model, checkpoint),
            **_precisions(precisions),
            **_tokens(tokens),
            "intent": intent,
            "slo_latency": slo_latency,
            "accuracy_floor": accuracy_floor,
            "batch": batch,
            "replicas": replicas,
            "pipeline_parallel_size": pipeline,
            "tensor_parallel_size": tensor,
            "kv_memory": kv_memory,
            "priority": priority,
            "fingerprint": None if fingerprint is None else _there(str(fingerprint)),
            "drain_s": drain_s,
        }
    httpx = _httpx()
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_ANSWER_S) as client:
            if pool is not None:
                answer = _checked(client.post("/admin/pool", json=_document(pool, drain_s, force)))
            elif body is not None:
                answer = _checked(client.post("/admin/models", json=_given(body)))
            elif remove:
                limits = _given({"drain_s": drain_s, "force": force or None})
                answer = _checked(client.delete(f"/admin/models/{model}", params=limits))
            else:
                answer = _checked(client.get("/admin/models"))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"--url: no Penstock server answers at {url} ({error})") from None
    if output is Format.json:
        print_json(answer)
    elif model is None and pool is None:
        _list(answer)
    else:
        _tell(answer)


def _name(model: str, checkpoint: str | None) -> dict[str, str]:
    """Served name and folder of the checkpoint."""
    if checkpoint is None:
        return {"model": Path(model).resolve().name, "checkpoint": _there(model)}
    return {"model": model, "checkpoint": _there(checkpoint)}


def _there(path: str) -> str:
    """A path as the server finds it: whole, where it exists on this machine."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _precisions(text: str | None) -> dict[str, Any]:
    """``float32,bfloat16:0.99``: those allowed, with their accuracy."""
    from penstock.errors import SpecError

    if text is None:
        return {}
    accuracy: dict[str, float] = {}
    names = []
    for part in text.split(","):
        name, colon, share = part.strip().partition(":")
        names.append(name)
        if colon:
            try:
                accuracy[name] = float(share)
            except ValueError:
                raise SpecError(
                    "an accuracy is a share", key="--precisions", value=part, fix="write int8:0.99"
                ) from None
    return {"precisions": names, "accuracy": accuracy}


def _tokens(text: str | None) -> dict[str, int]:
    from penstock.errors import SpecError

    if text is None:
        return {}
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise SpecError("must be two counts", key="--tokens", value=text, fix="write 512,128")
    return {"prompt_tokens": int(parts[0]), "output_tokens": int(parts[1])}


def _document(path: Path, drain_s: float | None, force: bool) -> dict[str, Any]:
    """The pool plan, checked here first: mistakes name the file."""
    from penstock.plan.pool_document import pool_to_dict, read_pool

    limits = _given({"drain_s": drain_s, "force": force or None})
    return {**pool_to_dict(read_pool(path)), **limits}


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not None}


def _httpx() -> Any:
    from importlib.util import find_spec

    from penstock.errors import InputError

    if find_spec("httpx") is None:
        raise InputError("deploy needs httpx; install it with pip install 'penstock[serve]'")
    import httpx

    return httpx


def _checked(response: httpx.Response) -> dict[str, Any]:
    """The answer. Raises ``Infeasible`` or ``InputError`` with the server's reason."""
    from penstock.errors import Infeasible, InputError

    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise InputError(f"{response.url} is no Penstock server (HTTP {response.status_code})")
    if response.status_code == 200:
        return answer
    error = answer.get("error", answer)
    reason = error.get("message", error) if isinstance(error, dict) else error
    if isinstance(error, dict) and error.get("code") == "infeasible":
        raise Infeasible(str(reason))
    raise InputError(f"{response.url} refuses: {reason}")


def _tell(answer: Mapping[str, Any]) -> None:
    for key, value in answer.items():
        if key in _CHANGED and not value:
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{key.replace('_', ' ')}: {shown}")


def _list(answer: Mapping[str, Any]) -> None:
    if not answer["models"]:
        note("no model is served yet")
    for entry in answer["models"]:
        print(f"{entry['name']}  {entry['precision']}  {entry['requests']} requests")
        for engine in entry["engines"]:
            beside = ", ".join(engine["shared_with"])
            print(
                f"  {engine['name']}: {', '.join(engine['nodes'])}, "
                f"TP {engine['tensor_parallel_size']}, layers {engine['layers']}"
                + (f", in turn with {beside}" if beside else "")
            )

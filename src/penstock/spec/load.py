"""From what a user names (a preset or a file) to the frozen values everything else works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from penstock.errors import SpecError
from penstock.spec import (
    cluster_file,
    helix_ini,
    model_file,
    models,
    served_file,
    workload_schema,
)
from penstock.spec.cluster import Cluster
from penstock.spec.cluster_file import cluster_from_dict, cluster_to_dict
from penstock.spec.files import PRESETS, read_json, read_text, read_yaml
from penstock.spec.model import ModelSpec
from penstock.spec.model_file import model_from_dict, model_to_dict
from penstock.spec.names import did_you_mean, normalise
from penstock.spec.traces import TRACE_SUFFIXES
from penstock.spec.workload import Workload
from penstock.spec.workload_file import workload_from_dict, workload_from_trace, workload_to_dict

__all__ = [
    "KINDS",
    "cluster_from_dict",
    "cluster_presets",
    "cluster_to_dict",
    "json_schema",
    "load_cluster",
    "load_model",
    "load_workload",
    "model_from_dict",
    "model_presets",
    "model_to_dict",
    "workload_from_dict",
    "workload_presets",
    "workload_to_dict",
]

KINDS = ("cluster", "workload", "model", "models")
_YAML = (".yaml", ".yml", ".json")


def cluster_presets() -> tuple[str, ...]:
    """Names of the bundled clusters."""
    return _preset_names("clusters")


def workload_presets() -> tuple[str, ...]:
    """Names of the bundled workloads."""
    return _preset_names("workloads")


def model_presets() -> tuple[str, ...]:
    """Names of the bundled models."""
    return tuple(models.presets())


def load_cluster(ref: str | Path) -> Cluster:
    """Return the cluster called ``ref``, or read it from a YAML, JSON or Helix ini file."""
    path = _file(ref, "cluster", "clusters", (*_YAML, ".ini"))
    if path.suffix.lower() == ".ini":
        sections = read_text(path)
        cluster = (
            helix_ini.read_simulator_cluster(path).cluster
            if "[ComputeNodes]" in sections
            else helix_ini.read_cluster(path)
        )
        try:
            cluster_file.check_connected(cluster)
        except SpecError as error:
            raise error.at(path) from None
        return cluster
    return cluster_from_dict(read_yaml(path), path)


def load_model(ref: str | Path) -> ModelSpec:
    """Return the model called ``ref`` (a preset or its Hugging Face id), or read it from a
    ``config.json``, the folder that holds one, or a model YAML file.
    """
    if isinstance(ref, str) and not _is_file_name(ref, _YAML):
        found = models.preset(ref)
        if found is not None:
            return found
    path = Path(ref)
    if not path.exists():
        if _is_file_name(str(ref), _YAML):
            read_text(path)
        raise _unknown("model", str(ref), model_presets(), "a config.json, its folder, or YAML")
    if path.is_dir():
        return models.read_config(path)
    if path.suffix.lower() == ".json":
        data = read_json(path)
        if isinstance(data, dict) and model_file.model_mapping(data):
            return models.read_config(path)
        return model_from_dict(data, path)
    return model_from_dict(read_yaml(path), path)


def load_workload(ref: str | Path) -> Workload:
    """Return the workload called ``ref``, or read it from YAML or a trace file."""
    path = _file(ref, "workload", "workloads", (*_YAML, *TRACE_SUFFIXES))
    if path.suffix.lower() in (".yaml", ".yml"):
        return workload_from_dict(read_yaml(path), path)
    if path.suffix.lower() == ".json":
        data = read_json(path)
        if isinstance(data, dict):
            return workload_from_dict(data, path)
    return workload_from_trace(path)


def json_schema(kind: str) -> dict[str, object]:
    """The JSON Schema of a file kind: one of ``KINDS``."""
    schemas: Mapping[str, Callable[[], dict[str, object]]] = {
        "cluster": cluster_file.ClusterFile.model_json_schema,
        "workload": workload_schema.WorkloadFile.model_json_schema,
        "model": model_file.ModelFile.model_json_schema,
        "models": served_file.ModelsFile.model_json_schema,
    }
    if kind not in schemas:
        raise SpecError("no such file kind", value=kind, fix=did_you_mean(kind, KINDS))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schemas[kind]()}


def _preset_names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (PRESETS / folder).glob("*.yaml")))


def _is_file_name(ref: str, suffixes: Iterable[str]) -> bool:
    return ref.lower().endswith(tuple(suffixes))


def _file(ref: str | Path, what: str, folder: str, suffixes: tuple[str, ...]) -> Path:
    """The file of a preset name or of a path; a name wins over a file without suffix."""
    names = {normalise(name): name for name in _preset_names(folder)}
    if isinstance(ref, str) and normalise(ref) in names:
        return PRESETS / folder / f"{names[normalise(ref)]}.yaml"
    path = Path(ref)
    if path.is_file() or _is_file_name(str(ref), suffixes):
        return path
    if path.is_dir():
        raise SpecError(f"this is a folder; name a {what} file in it", source=path)
    raise _unknown(
        what, str(ref), tuple(names.values()), f"a file ({', '.join(dict.fromkeys(suffixes))})"
    )


def _unknown(what: str, ref: str, known: Iterable[str], files: str) -> SpecError:
    return SpecError(
        f"no {what} preset or file of this name",
        value=ref,
        fix=f"{did_you_mean(ref, known)} (or give {files})",
    )

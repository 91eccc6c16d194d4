"""Files of the models of a pool: what they mean, what they may leave out, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.errors import SpecError
from penstock.spec.load import json_schema, load_model
from penstock.spec.served import in_precision, own_precision, parse_precision, with_limits
from penstock.spec.served_file import is_served_file, load_served, served_from_dict
from penstock.spec.variants import Precision, Variant
from penstock.spec.workload import SLO, SLOClass, Workload
from penstock.spec.workload_file import workload_from_dict, workload_to_dict


def _full() -> dict[str, Any]:
    return {
        "models": [
            {"name": "chat", "model": "llama2-7b"},
            {
                "name": "code",
                "model": "llama2-13b",
                "priority": 2,
                "intent": "min_cost",
                "slo_latency": "2 s",
                "accuracy_floor": 0.9,
                "precisions": ["int8+kv8", "float16"],
                "variants": [
                    {"precision": "float16", "accuracy": 1},
                    {"precision": "int8+kv8", "accuracy": 0.97},
                    {"precision": "int4", "accuracy": 0.8},
                ],
                "slo": {"ttft": "500 ms", "e2e": 4},
            },
        ]
    }


def test_a_model_alone_is_served_as_it_is() -> None:
    """Without variants there is one form: the model's own, with its whole accuracy."""
    chat, _ = served_from_dict(_full())
    assert chat.model == load_model("llama2-7b")
    own = own_precision(chat.model)
    assert chat.variants == (Variant(own, 1.0),)
    same = in_precision(chat.model, own)
    assert same.slice_weight_bytes(0, 32) == chat.model.slice_weight_bytes(0, 32)
    assert same.kv_bytes_per_token_per_layer == chat.model.kv_bytes_per_token_per_layer


def test_wishes_and_forms_are_read_with_units() -> None:
    """Precisions, intent, limits and priority arrive as values."""
    _, code = served_from_dict(_full())
    assert code.wish.intent == "min_cost"
    assert code.wish.latency_slo_s == 2.0
    assert code.wish.accuracy_floor == 0.9
    assert code.wish.precisions == {Precision("float16"), Precision("int8", int8_kv=True)}
    assert [one.accuracy for one in code.variants] == [1, 0.97, 0.8]
    assert (code.priority, code.slo) == (2, SLO(ttft_s=0.5, e2e_s=4.0))


@pytest.mark.parametrize("text", ["float16", "bfloat16", "int4_gptq", "int8+kv8"])
def test_precisions_read_back_as_written(text: str) -> None:
    """The text of a precision is its name in every file."""
    assert str(parse_precision(text)) == text


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    """A config.json and a checkpoint beside the file are found from anywhere."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,'
        '"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,'
        '"intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512,'
        '"torch_dtype": "bfloat16"}'
    )
    path = tmp_path / "models.yaml"
    path.write_text("models: [{name: tiny, model: tiny, checkpoint: tiny}]\n")
    (tiny,) = load_served(path)
    assert tiny.model.num_hidden_layers == 2
    assert tiny.variants[0].precision == Precision("bfloat16")
    assert Path(tiny.checkpoint) == folder


def test_files_of_models_are_told_from_workloads(tmp_path: Path) -> None:
    """Both have a list `models`; only one of them says what arrives."""
    served, traffic = tmp_path / "models.yaml", tmp_path / "workload.yaml"
    served.write_text(yaml.safe_dump(_full()))
    traffic.write_text("models: [{name: chat, arrivals: {poisson: {rate: 1}}}]\n")
    assert is_served_file(served)
    assert not is_served_file(traffic)
    assert not is_served_file(tmp_path / "trace.csv")


def test_limits_fill_only_what_the_workload_leaves_open() -> None:
    """The class of a model takes the model's limits; one with limits keeps its own."""
    models = served_from_dict(_full())
    kept = SLOClass("other", SLO(ttft_s=9.0))
    own = SLOClass("code", SLO(tpot_s=0.1))
    asked = Workload("w", 1.0, classes=(SLOClass("chat", SLO()), SLOClass("code", SLO()), kept))
    filled = with_limits(asked, models).classes
    assert [entry.slo for entry in filled] == [SLO(), SLO(ttft_s=0.5, e2e_s=4.0), kept.slo]
    assert with_limits(Workload("w", 1.0, classes=(own,)), models).classes == (own,)


def test_filled_limits_are_written_with_the_workload() -> None:
    """A document of the workload holds what its requests were promised in the end."""
    models = served_from_dict(_full())
    stream = {"name": "code", "arrivals": {"poisson": {"rate": 1}}}
    asked = workload_from_dict({"lengths": "azure-conv", "models": [stream]})
    filled = with_limits(asked, models)
    again = workload_from_dict(workload_to_dict(filled))
    assert again.classes == filled.classes
    assert again.classes[0].slo == SLO(ttft_s=0.5, e2e_s=4.0)


Change = Callable[[dict[str, Any]], Any]
MISTAKES: list[tuple[Change, str]] = [
    (lambda d: d.update(modles=[]), "modles.*did you mean 'models'"),
    (lambda d: d["models"][1].update(intents="x"), r"models.1..intents.*'intent'"),
    (lambda d: d["models"][1].update(intent="min_latencies"), r"models.1..intent.*min_latency"),
    (lambda d: d["models"][1].update(model="lama2-13b"), r"models.1..*llama2-13b"),
    (lambda d: d["models"][1].update(name="chat"), "named twice"),
    (lambda d: d["models"][1].update(accuracy_floor=1.0, precisions=["int8+kv8"]), "0.97"),
    (lambda d: d["models"][1].update(precisions=["int7"]), r"models.1..precisions.*int4"),
    (lambda d: d["models"][0].update(precisions=["int4"]), r"models.0..precisions.*variants"),
    (lambda d: d["models"][1].update(variants=[]), "variants.*empty"),
    (lambda d: d["models"][1]["variants"][0].update(accuracy=0), "accuracy"),
    (lambda d: d["models"][1]["variants"][1].update(precision="float16"), "named twice"),
    (lambda d: d["models"][1]["slo"].update(ttfts=1), r"slo.ttfts.*'ttft'"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_one_line_that_names_the_key(change: Change, message: str) -> None:
    """Unknown keys, unknown names and forms that do not exist each say where they are."""
    data = _full()
    change(data)
    with pytest.raises(SpecError, match=message) as raised:
        served_from_dict(data, "models.yaml")
    assert str(raised.value).startswith("models.yaml")


def test_the_schema_names_every_key() -> None:
    """Editors get what the reader takes."""
    schema = json_schema("models")
    text = str(schema)
    for key in ("accuracy_floor", "slo_latency", "precisions", "variants", "checkpoint"):
        assert key in text

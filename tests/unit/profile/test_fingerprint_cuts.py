"""Cuts of a checkpoint hold its first layers; a fingerprint refuses what it cannot measure."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from penstock.cli.main import execute
from penstock.cost.fingerprint_times import LayerTimes
from penstock.cost.step_table import DecodePoint, HostTimes, PrefillPoint, StepTableFile
from penstock.errors import SpecError
from penstock.profile.batches import Batch, Runner, Sample, kv_tokens, quick
from penstock.profile.cuts import cut_checkpoint
from penstock.profile.fingerprint import FingerprintSettings, batches
from penstock.profile.fingerprint_server import server_times

TINY = Path(__file__).parents[3] / "models" / "tiny"


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("quiet")
def test_a_cut_computes_what_the_first_layers_do(tmp_path: Path) -> None:
    """Embedding, two layers, last norm and head give the logits of transformers."""
    serve = pytest.importorskip("penstock.serve.model")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")
    torch.set_num_threads(1)
    tokens = torch.tensor([3, 99, 7, 250, 12])
    oracle = transformers.LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    oracle.model.layers = oracle.model.layers[:2]
    with torch.inference_mode():
        expected = oracle(tokens[None], use_cache=False).logits[0].numpy()
    cut = serve.load_slice(cut_checkpoint(TINY, 2, tmp_path / "cut"), dtype="float32", num_pages=8)
    pages = serve.SequencePages(cut.pool, 16, 0, 2)
    pages.reserve(len(tokens))
    item = serve.StepItem(len(tokens), 0, pages.table, 0, 2)
    found = cut.head(cut.forward(serve.StepInput([item], tokens=tokens))).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_weights_are_linked_and_lists_of_layers_cut(tmp_path: Path) -> None:
    """Nothing but the config is written."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((TINY / "config.json").read_text())
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(TINY / "model.safetensors")
    cut = cut_checkpoint(folder, 2, tmp_path / "cut")
    found = json.loads((cut / "config.json").read_text())
    assert (found["num_hidden_layers"], len(found["layer_types"])) == (2, 2)
    assert [file.name for file in cut.iterdir() if not file.is_symlink()] == ["config.json"]
    assert (cut / "model.safetensors").samefile(TINY / "model.safetensors")
    with pytest.raises(SpecError, match="has 6 layers"):
        cut_checkpoint(folder, 7, tmp_path / "deep")


def test_batches_fit_the_model() -> None:
    """No sequence is longer than the model's positions, and small batches come with any length."""
    for longest in (40, 256, 2048):
        found = batches(longest)
        assert all(b.prompt_tokens + 20 <= longest for b in found)
        assert {b.size for b in found} == {1, 2, 4, 8, 16, 32}
    assert batches(30) == []
    assert kv_tokens([Batch(3, 30), Batch(1, 100)], 20) == 3 * 64


def test_stages_share_the_layers() -> None:
    """Every layer lies on exactly one worker, and each holds pages for its own."""
    runner = Runner("r", TINY, 3, tp=2, pp=2, dtype="float32", kv_tokens=40)
    assert [(hop.start_layer, hop.end_layer) for hop in runner.hops] == [(0, 1), (1, 3)]
    assert [spec.num_pages for spec in runner.specs()] == [3, 6]
    assert all(spec.tensor_parallel_size == 2 for spec in runner.specs())


def test_disturbed_steps_do_not_count() -> None:
    """Of few calm steps the quickest, of many one near it; without calm ones the wait goes off."""
    calm = [Sample(seconds, 0.0) for seconds in (5.0, 1.0, 9.0)]
    assert quick(calm) == 1.0
    assert quick([Sample(float(i), 0.0) for i in range(1, 21)]) == 3.0
    assert quick([*calm, Sample(0.5, 0.4)]) == 1.0
    assert quick([Sample(3.0 + wait, wait) for wait in (1.0, 2.0, 5.0)]) == 3.0


def test_a_server_adds_what_its_worker_does_not_take() -> None:
    """Steps of the served cut less those of its worker, as a line over sequences."""
    own = LayerTimes((1, 8), (0.001, 0.002), (0.001, 0.002), 1e-6, (0, 0, 0), (0, 0, 0))
    points = tuple(
        DecodePoint(
            seqs=n,
            context_tokens=50 * n,
            seconds=own.decode_line(n, 1).at(50 * n) + 0.003 + 1e-4 * n,
        )
        for n in (1, 4, 16)
    )
    table = StepTableFile(
        model="m",
        accelerator="CPU",
        source="by hand",
        host=HostTimes(fixed=0.005, per_prompt_token=1e-6),
        decode=points,
        prefill=(PrefillPoint(tokens=8, seconds=0.01),),
    )
    found = server_times(table, own)
    assert found.step == pytest.approx(0.003)
    assert found.sequence == pytest.approx(1e-4)
    assert (found.request, found.prompt_token) == (0.005, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--model"),
        (["--fingerprint", str(TINY), "--model", str(TINY)], "--fingerprint"),
        (["--fingerprint", str(TINY), "--tp", "2"], "--tp"),
        (["--fingerprint", str(TINY), "--device", "cuda"], "--device"),
        (["--fingerprint", str(TINY), "--dtype", "int3"], "--dtype"),
        (["--fingerprint", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags that contradict each other or say nothing of cuts, and folders that are not there."""
    assert execute(["profile", *arguments, "-o", str(tmp_path / "f.yaml")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert says in error


def test_two_depths_are_needed() -> None:
    """One cut cannot tell layers from the rest."""
    with pytest.raises(SpecError, match="two depths"):
        FingerprintSettings(cuts=(2, 2))

"""A machine whose every second and byte is known, and the fingerprint it would give."""

from __future__ import annotations

from pathlib import Path

from penstock.cost.fingerprint_file import (
    CutChunk,
    CutRun,
    FingerprintFile,
    Machine,
    ServerTimes,
    Shape,
)

LAYERS, HIDDEN, LAYER_PARAMETERS, KV_VALUES = 12, 64, 50_000, 64
KV_TOKENS = 4096
PROCESS_BYTES, RANK_BYTES, STAGE_BYTES, STEP_BYTES = 300e6, 200e6, 250e6, 1000
SERVER = ServerTimes(step=0.004, sequence=1e-4, request=0.006, prompt_token=2e-6)


def decode_s(layers: int, tp: int, pp: int, seqs: int, context: float) -> float:
    """Layers share work over ranks, which cost 0.2 ms for each further one; a hop takes 0.5 ms."""
    layer = (1e-3 + 1e-4 * seqs + 1e-7 * context) / tp + 2e-4 * (tp - 1)
    return 2e-3 + 5e-5 * seqs + layers * layer + (pp - 1) * hop_s(seqs)


def prompt_s(layers: int, tp: int, pp: int, prompts: list[tuple[int, int]]) -> float:
    """``prompts``: (tokens, cached tokens)."""
    tokens = sum(n for n, _ in prompts)
    pairs = sum(n * (n + 1) / 2 + n * cached for n, cached in prompts)
    layer = (5e-4 + 2e-5 * tokens + 3e-8 * pairs) / tp + 2e-4 * (tp - 1)
    rest = 1e-3 + 1e-4 * len(prompts) + 1e-6 * tokens
    return rest + layers * layer + (pp - 1) * hop_s(tokens)


def hop_s(tokens: int) -> float:
    return 5e-4 + 1e-6 * tokens


def latency_s(layers: int, tp: int, pp: int, *, prompt: int, output: int, batch: int) -> float:
    total = prompt_s(layers, tp, pp, [(prompt, 0)] * batch)
    return total + sum(
        decode_s(layers, tp, pp, batch, batch * (prompt + k)) for k in range(1, output)
    )


def memory_bytes(layers: int, tp: int, pp: int, *, tokens: int, kv_tokens: int) -> float:
    held = layers * 4 * (LAYER_PARAMETERS + kv_tokens * KV_VALUES)
    more = pp * (tp - 1) * RANK_BYTES + (pp - 1) * STAGE_BYTES
    return held + PROCESS_BYTES + STEP_BYTES * tokens + more


def document(*, tp2: bool = True, pp2: bool = True) -> FingerprintFile:
    """The fingerprint of the machine above."""
    kinds = [(1, 1, (1, 2)), *([(2, 1, (1, 2))] if tp2 else []), *([(1, 2, (2, 3))] if pp2 else [])]
    runs = [
        CutRun(
            dtype="float32",
            tp=tp,
            pp=pp,
            layers=n,
            prompt_tokens=prompt,
            output_tokens=output,
            batch=batch,
            prefill=prompt_s(n, tp, pp, [(prompt, 0)] * batch),
            latency=latency_s(n, tp, pp, prompt=prompt, output=output, batch=batch),
            memory=round(memory_bytes(n, tp, pp, tokens=batch * prompt, kv_tokens=KV_TOKENS)),
            kv_tokens=KV_TOKENS,
        )
        for tp, pp, cuts in kinds
        for n in cuts
        for batch in (1, 2, 4, 8)
        for prompt in (16, 64, 256)
        for output in (10, 20)
    ]
    chunks = [
        CutChunk(
            dtype="float32",
            tp=1,
            pp=1,
            layers=n,
            tokens=128,
            cached_tokens=512,
            seconds=prompt_s(n, 1, 1, [(128, 512)]),
        )
        for n in (1, 2)
    ]
    return FingerprintFile(
        penstock_fingerprint=1,
        model="known",
        stored="float32",
        accelerator="CPU",
        source="by hand",
        shape=Shape(
            layers=LAYERS,
            hidden_size=HIDDEN,
            layer_parameters=LAYER_PARAMETERS,
            kv_values=KV_VALUES,
        ),
        machine=Machine(name="known", cores=2, memory=1 << 34, threads=1, torch="2.13.0"),
        server=SERVER,
        runs=tuple(runs),
        chunks=tuple(chunks),
    )


def config(folder: Path) -> Path:
    """A config of the model above."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, '
        f'"hidden_size": {HIDDEN}, "intermediate_size": 128, "num_hidden_layers": {LAYERS}, '
        '"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, '
        '"torch_dtype": "float32"}'
    )
    return folder

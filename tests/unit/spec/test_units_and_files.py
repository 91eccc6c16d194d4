"""Numbers with units, strict YAML, and names people mistype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import SpecError
from penstock.spec import units
from penstock.spec.catalogue import accelerator, catalogue, machine_type, parse_machine_type
from penstock.spec.files import parse_yaml, read_json, read_yaml
from penstock.spec.names import did_you_mean, normalise


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (units.parse_bandwidth, "25 Gbit/s", 3.125e9),
        (units.parse_bandwidth, "1.25 GB/s", 1.25e9),
        (units.parse_bandwidth, "10 Gbps", 1.25e9),
        (units.parse_bandwidth, "800 mbps", 1e8),
        (units.parse_bandwidth, "1 GiB/s", 2.0**30),
        (units.parse_bandwidth, 5, 5.0),
        (units.parse_bandwidth, "1e9", 1e9),
        (units.parse_bytes, "16 GiB", 16 * 2**30),
        (units.parse_bytes, "80 GB", 80_000_000_000),
        (units.parse_bytes, "40gb", 40_000_000_000),
        (units.parse_duration, "5 ms", 0.005),
        (units.parse_duration, "2 h", 7200.0),
        (units.parse_duration, "1_000us", 1e-3),
        (units.parse_price, "$1.2/h", 1.2),
        (units.parse_price, 0, 0.0),
        (units.parse_flops, "312 TFLOPS", 312e12),
        (units.parse_rate, "90 /min", 1.5),
    ],
)
def test_numbers_with_units(
    parse: Callable[[object], float], text: object, expected: float
) -> None:
    """B is a byte and b a bit; GB is 1e9 and GiB 2**30."""
    assert parse(text) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "value", ["10 gb/s", "10 apples", "", "nan", float("inf"), -1, 0, True, None, [1], "1e999"]
)
def test_what_is_not_a_bandwidth(value: object) -> None:
    """Ambiguous, negative, zero, non-finite and foreign values are refused."""
    with pytest.raises(SpecError):
        units.parse_bandwidth(value)


@given(st.floats(min_value=1e-6, max_value=1e15, allow_nan=False))
def test_plain_numbers_pass_through(value: float) -> None:
    """A number without unit, or its text, is already in base units."""
    assert units.parse_bandwidth(value) == value
    assert units.parse_bandwidth(repr(value)) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "'a' is written twice"),
        ("a: [1\n", "not valid YAML"),
        ("", "the file is empty"),
        ("- 1\n", "must be a mapping"),
        ("a: !!python/object/apply:os.system ['x']\n", "not valid YAML"),
        ("? [1]\n: 2\n", "not valid YAML"),
        ("a: &x [*x]\n", ""),
    ],
)
def test_bad_yaml_is_one_line(text: str, expected: str) -> None:
    """Broken or tricky YAML gives one line that names the file; nothing is executed."""
    if not expected:
        parse_yaml(text, "f.yaml")
        return
    with pytest.raises(SpecError, match=expected) as caught:
        parse_yaml(text, "f.yaml")
    assert str(caught.value).startswith("f.yaml")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    """A path that is no file says so."""
    with pytest.raises(SpecError, match="file not found"):
        read_yaml(tmp_path / "no.yaml")
    with pytest.raises(SpecError, match="folder"):
        read_yaml(tmp_path)


def test_json_must_be_finite(tmp_path: Path) -> None:
    """NaN is not JSON."""
    path = tmp_path / "x.json"
    path.write_text('{"a": NaN}')
    with pytest.raises(SpecError, match="finite"):
        read_json(path)


def test_did_you_mean_names_the_nearest() -> None:
    """A near miss names the word; nonsense lists what is known."""
    assert did_you_mean("acelerator", ["name", "accelerator"]) == "did you mean 'accelerator'?"
    assert did_you_mean("zzz", ["one", "two"]) == "known: one, two"
    assert normalise("Llama-2_70B.x") == "llama270bx"


def test_accelerators_by_alias() -> None:
    """Short names mean what people mean by them."""
    assert accelerator("a100").memory_bytes == 40_000_000_000
    assert accelerator("4090") is accelerator("RTX 4090")
    assert accelerator("h100").name == "H100-SXM"
    with pytest.raises(SpecError, match="did you mean 'H200'"):
        accelerator("H2000")


def test_machine_types() -> None:
    """A machine type is the short name and the number of accelerators."""
    assert machine_type("A100-40GB", 1) == "A100"
    assert machine_type("L4", 2) == "L4x2"
    found, count = parse_machine_type("T4x4")
    assert (found.name, count) == ("T4", 4)
    assert parse_machine_type("RTX-4090")[1] == 1


def test_catalogue_is_sane() -> None:
    """Every entry has a source, and figures in the range of real hardware."""
    promised = """A100-40GB A100-80GB H100-SXM H100-PCIe H200 B200 GB200 L4 L40S A10G A30 A40 T4
        V100-16GB V100-32GB RTX-4090 RTX-A6000 RTX-PRO-6000-Blackwell MI300X MI325X"""
    assert set(promised.split()) <= set(catalogue().accelerators)
    for entry in catalogue().accelerators.values():
        assert entry.source
        assert 8e9 <= entry.memory_bytes <= 512e9
        assert 2e11 <= entry.memory_bandwidth_bytes_per_s <= 1e13
        assert entry.flops_per_s["fp16"] > entry.flops_per_s["fp32"]
        assert entry.flops_per_s.get("bf16", entry.flops_per_s["fp16"]) == entry.flops_per_s["fp16"]
        intensity = entry.flops_per_s["fp16"] / entry.memory_bandwidth_bytes_per_s
        assert 20 < intensity < 500

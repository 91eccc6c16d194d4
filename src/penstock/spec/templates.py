"""The commented example files that ``penstock init`` writes."""

from __future__ import annotations

from collections.abc import Mapping

_CLUSTER = """\
# The machines you have. Change counts and types, then run
#
#   penstock plan cluster.yaml llama2-70b --workload workload.yaml -o plan.yaml
#   penstock simulate plan.yaml workload.yaml
#
# `penstock schema cluster` prints every key. Units may be written out: "80 GB", "16 GiB",
# "25 Gbit/s" (bits), "1.25 GB/s" (bytes), "5 ms", "$1.2/h".
name: my-fleet

nodes:
  # A group of equal machines: they are called a100-0, a100-1, ...
  - name: a100
    accelerator: A100-40GB      # or H100, L40S, L4, T4, RTX-4090, MI300X, ...
    count: 4                    # machines
    region: us
    nic: 10 Gbit/s

  - name: l4
    accelerator: L4
    count: 8
    region: us
    nic: 10 Gbit/s

  - name: t4
    accelerator: T4
    count: 6
    accelerators_per_node: 2    # GPUs of one machine work as one tensor-parallel group
    region: eu
    nic: 10 Gbit/s
    disk: 1 GB/s                # weights are loaded at this speed
    # memory: 30 GB             # of the whole machine, if not all of it is yours
    # price: $0.90/h            # of the whole machine; otherwise an indicative list price

# Where requests arrive.
coordinator:
  region: us
  nic: 10 Gbit/s

network:
  in_region: {bandwidth: 10 Gbit/s, latency: 0.5 ms}
  regions:
    - {between: [us, eu], bandwidth: 1 Gbit/s, latency: 45 ms}
  # Single links may differ:
  # pairs:
  #   - {between: [a100-0, a100-1], bandwidth: 100 Gbit/s, latency: 0.1 ms}
  #   - {between: [l4-7, t4-0], cut: true}

# GPUs the catalogue does not know:
# accelerators:
#   MyGPU:
#     memory: 24 GB
#     bandwidth: 600 GB/s
#     flops: {fp16: 120 TFLOPS}   # dense
#     interconnect: pcie          # nvlink, pcie, infinity-fabric, none
#     interconnect_bandwidth: 32 GB/s
#     price: $0.60/h
"""

_WORKLOAD = """\
# What is asked of the fleet. `penstock schema workload` prints every key.
name: chat
duration: 10 min        # of traffic
warmup: 1 min           # not measured
seed: 0

# How long prompts and answers are. A bundled preset (azure-conv, azure-conv-full, azure-code),
# or one of:
#   lengths: {prompt: 512, output: 128}
#   lengths: {prompt: {lognormal: {mean: 800, cv: 1.2, max: 4096}}, output: {uniform: [16, 512]}}
#   lengths: {trace: my-trace.csv}
lengths: azure-conv

# When requests come. One of:
#   poisson: {rate: 2 /s}            gamma: {rate: 2 /s, cv: 3}        (bursty)
#   uniform: {rate: 2 /s}            all_at_once: {count: 200}
#   closed_loop: {concurrency: 64}   saturating: {feed_mark: 0.8}      (as much as fits)
arrivals:
  poisson: {rate: 0.5 /s}

# Instead of lengths and arrivals, replay a trace (Azure LLM, Mooncake, BurstGPT, splitwise or
# our own CSV with arrival_s,prompt_tokens,output_tokens):
#   trace: {file: my-trace.csv, rate_scale: 1.5, max_requests: 10000}

# Who asks, and what they are promised: ttft = first token, tpot = seconds per further token.
classes:
  - {name: interactive, share: 0.8, ttft: 10 s, tpot: 1.5 s}
  - {name: batch, share: 0.2, e2e: 10 min}
"""


def example_files() -> Mapping[str, str]:
    """File name -> text; the files load as they are."""
    return {"cluster.yaml": _CLUSTER, "workload.yaml": _WORKLOAD}

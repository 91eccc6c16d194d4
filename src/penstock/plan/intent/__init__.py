"""From an intent (least latency, cost, memory or GPU time) to a configuration and its GPUs."""

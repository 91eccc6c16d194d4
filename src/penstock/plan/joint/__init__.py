"""Many models on one pool of unequal GPUs: shapes, placement, precision and replicas together."""

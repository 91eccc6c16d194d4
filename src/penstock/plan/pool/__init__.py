"""Many models on one pool of equal GPUs: groups, replicas, and requests admitted by prediction."""

"""What runs on a stage: the loop, the batches and transfers, and what computes."""

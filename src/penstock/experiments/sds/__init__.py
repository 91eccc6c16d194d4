"""SDS (DistServe on spot GPUs) again: its policy, its pools, its operations file."""

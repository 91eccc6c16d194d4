"""Load on an OpenAI endpoint, and what its client saw, as a run."""

"""The search engine of the ``penstock`` planner."""

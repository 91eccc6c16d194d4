"""Several models in one server: a runtime each over shared workers, changed while they serve."""

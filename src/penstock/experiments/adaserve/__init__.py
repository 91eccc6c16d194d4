"""AdaServe (EuroSys'26): its figures again, and what beats it."""

"""Measures layers, links and engines on the machine it runs on. Needs ``penstock[serve]``."""

"""Searches for the deployment with the most good requests per second, or the cheapest one."""

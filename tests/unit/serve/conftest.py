"""Tests of the runtime need the extra ``serve``; without it none of them is collected."""

from __future__ import annotations

from importlib.util import find_spec

SERVING = ("torch", "fastapi", "zmq", "msgspec")
collect_ignore_glob = [] if all(find_spec(name) for name in SERVING) else ["*"]

"""These tests talk to servers: without the extra ``serve`` none of them is collected."""

from __future__ import annotations

from importlib.util import find_spec

SERVING = ("torch", "fastapi", "zmq", "msgspec", "httpx")
collect_ignore_glob = [] if all(find_spec(name) for name in SERVING) else ["*"]

"""The HTTP face of the runtime: the OpenAI API, metrics, the live page and the pool's controls.

The life of a request: ``Edge`` checks the key and names the request; an endpoint of ``Gateway``
reads and checks the body (``bodies``, ``reading``) and turns it into a ``Job`` of token ids;
``Answer`` asks the runtime for each choice, reads all streams at once (``Merged``), turns tokens
into text (``ChoiceText``) and text into bytes (``formats``), while ``Record`` keeps the times.
"""

from __future__ import annotations

from penstock.serve.gateway.app import make_app
from penstock.serve.gateway.logs import log_as_json
from penstock.serve.gateway.server import GatewayServer
from penstock.serve.gateway.settings import GatewaySettings

__all__ = ["GatewayServer", "GatewaySettings", "log_as_json", "make_app"]

"""Chat templates: messages to the prompt that a model was trained on.

The template is a Jinja program of the checkpoint. It runs sandboxed, with the helpers that
Hugging Face gives to templates: ``raise_exception``, ``strftime_now``, ``tojson`` without HTML
escapes, loop controls and ``{% generation %}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.errors import InputError, SpecError

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"

_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class ChatTemplate:
    """One template with the special tokens it may name."""

    def __init__(
        self,
        template: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        source: str | Path = "chat template",
    ) -> None:
        """Raises ``SpecError`` if ``template`` is not Jinja."""
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = _environment().from_string(template)
        except TemplateError as error:
            raise SpecError(f"is not a Jinja template: {error}", source=source) from None

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate | None:
        """The template of a checkpoint, None where it has none.

        ``chat_template.jinja`` rules over the one in ``tokenizer_config.json``; of several named
        ones the one called ``default`` is taken.
        """
        config_path, path = Path(folder) / CONFIG_FILE, Path(folder) / TEMPLATE_FILE
        config = _read_config(config_path)
        template: object = config.get("chat_template")
        source = config_path
        if path.is_file():
            template, source = _read_text(path), path
        elif isinstance(template, list):
            named = {str(entry.get("name")): entry.get("template") for entry in template}
            template = named.get("default")
        if template is None:
            return None
        if not isinstance(template, str):
            raise SpecError("must be text", source=source, key="chat_template")
        return cls(template, special_tokens=_special_tokens(config), source=source)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt; raises ``InputError`` with the template's own words where it refuses."""
        values: dict[str, object] = {"tools": None, "documents": None}
        values.update(self._special_tokens)
        values.update(variables or {})
        values.update(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
        )
        try:
            return self._template.render(values)
        except TemplateError as error:
            raise InputError(f"the chat template refuses the messages: {error}") from None
        except Exception as error:
            # The template is a program of the checkpoint: whatever it trips over, it is about
            # these messages.
            raise InputError(
                f"the chat template cannot render the messages: {type(error).__name__}: {error}"
            ) from None


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text for training; shows its body."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot be read: {error}", source=path) from None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read_text(path))
    except ValueError as error:
        raise SpecError(f"is not JSON: {error}", source=path) from None
    if not isinstance(config, dict):
        raise SpecError("must be a mapping", source=path)
    return config


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens are written as text or as a mapping with ``content``."""
    found = {}
    for key in _SPECIALS:
        value = config.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[key] = value
    return found

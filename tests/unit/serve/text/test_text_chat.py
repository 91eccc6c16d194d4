"""Chat templates: the same prompt as the transformers library makes, and no way out of the box."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from penstock.errors import InputError, SpecError
from penstock.serve.text import ChatTemplate, load_text

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": "Grüße \"quoted\" & 'single'"},
    {"role": "assistant", "content": "Yes.\n"},
    {"role": "user", "content": "Why?"},
]

TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama": """
        {{- bos_token }}
        {%- set ns = namespace(first=true) %}
        {%- for message in messages %}
            {%- if message['role'] == 'system' %}
                {{- '<<SYS>>' + message['content'] + '<</SYS>>' }}
                {%- continue %}
            {%- endif %}
            {%- if ns.first %}{{ '[first]' }}{% set ns.first = false %}{% endif %}
            {{- message['role'] + ': ' + message['content'] | trim + eos_token }}
        {%- endfor %}
    """,
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "tools": "{{ tools is none }} {{ documents is none }} {{ enable_thinking }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_equal_those_of_transformers(
    name: str, byte_checkpoint: Path, tmp_path: Path
) -> None:
    """Each template gives byte for byte what ``apply_chat_template`` gives."""
    transformers = pytest.importorskip("transformers")
    shutil.copy(byte_checkpoint / "tokenizer.json", tmp_path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|begin|>", "special": True},
        "eos_token": "<|end|>",
        "chat_template": TEMPLATES[name],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    chat = load_text(tmp_path).chat
    assert chat is not None
    for add in (True, False):
        expected = oracle.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=add, enable_thinking=False
        )
        ours = chat.render(
            MESSAGES, add_generation_prompt=add, variables={"enable_thinking": False}
        )
        assert ours == expected


def test_a_template_file_rules_over_the_configuration(tmp_path: Path) -> None:
    """``chat_template.jinja`` is the newer place."""
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    (tmp_path / "chat_template.jinja").write_text("new")
    chat = ChatTemplate.load(tmp_path)
    assert chat is not None
    assert chat.render([]) == "new"


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    """Some checkpoints name templates for tools and for retrieval besides."""
    templates = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    chat = ChatTemplate.load(tmp_path)
    assert chat is not None
    assert chat.render([]) == "d"


def test_a_template_may_name_the_date() -> None:
    """``strftime_now`` is the clock of the machine."""
    before = datetime.now().year
    year = int(ChatTemplate("{{ strftime_now('%Y') }}").render([]))
    assert before <= year <= datetime.now().year


def test_a_template_refuses_messages_in_its_own_words() -> None:
    """``raise_exception`` is an answer to the client."""
    chat = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="refuses the messages: roles must alternate"):
        chat.render([])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing.there }}",
    ],
)
def test_a_hostile_template_gets_nowhere(template: str) -> None:
    """The sandbox refuses internals, changes and endless loops, as an error of the request."""
    with pytest.raises(InputError, match="chat template"):
        ChatTemplate(template).render(MESSAGES)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"chat_template": "{% if %}"}', "is not a Jinja template"),
        ('{"chat_template": 3}', "chat_template: must be text"),
        ("{", "is not JSON"),
        ("[]", "must be a mapping"),
    ],
)
def test_a_broken_configuration_is_one_clear_line(
    tmp_path: Path, content: str, problem: str
) -> None:
    """The error names the file and what is wrong in it."""
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(SpecError, match=problem) as caught:
        ChatTemplate.load(tmp_path)
    assert "tokenizer_config.json" in str(caught.value)

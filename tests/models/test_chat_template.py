"""Conversations to prompts."""

from pathlib import Path
from typing import Any

import pytest
from tokenizer_folder import CHATML, folder_of
from transformers import AutoTokenizer

from tokenvm.chat_template import ChatTemplate
from tokenvm.errors import RequestError
from tokenvm.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "<b>\"'é\n"}]
TEMPLATES = {
    "chatml": CHATML,
    "tojson": "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}",
    "special tokens": "{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}",
    "loop controls": "{% for m in messages %}{{ m.role }}{% if true %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "blocks are trimmed": "  {% if true %}\n    x\n  {% endif %}\ny",
    "absent tools": "{{ tools is none }}{{ documents is none }}{{ custom is defined }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(folder_of(tmp_path_factory.mktemp("t"), chat_template=CHATML))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("prompt", [True, False])
def test_conversations_are_rendered_as_hugging_face_does(template: str, prompt: bool, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder_of(tmp_path, chat_template=template))
    expected = reference.apply_chat_template(TALK, tokenize=False, add_generation_prompt=prompt)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.apply_chat_template(TALK, prompt, tokenize=False) == expected
    ids = reference.apply_chat_template(TALK, add_generation_prompt=prompt)["input_ids"]
    assert ours.apply_chat_template(TALK, prompt) == ids


def test_a_template_file_wins_over_the_config(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, chat_template="config")
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_folder(folder).apply_chat_template(TALK, tokenize=False) == "file"


def test_of_several_templates_the_default_is_used(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    found = Tokenizer.from_folder(folder_of(tmp_path, chat_template=several))
    assert found.apply_chat_template(TALK, tokenize=False) == "plain"


def test_special_tokens_may_be_written_as_objects(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, eos_token={"content": "<|im_end|>", "special": True}, chat_template="{{ eos_token }}"
    )
    found = Tokenizer.from_folder(folder)
    assert found.apply_chat_template(TALK, tokenize=False) == "<|im_end|>"
    assert found.eos_token_ids == (2,)


def test_parts_of_text_are_joined(tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    joined = tokenizer.apply_chat_template([{"role": "user", "content": parts}])
    assert joined == tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must be a list"),
        ("hello", "must be a list"),
        ({"role": "user"}, "must be a list"),
        (["hello"], r"messages\[0\] must be like"),
        ([TALK[0], {"content": "x"}], r'messages\[1\]\["role"\]'),
        ([{"role": "", "content": "x"}], "role"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": 5}], "content"),
        ([{"role": "user", "content": []}], "content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "only text is supported"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "content"),
        ([{"role": "user", "content": "x", "extra": ...}], "holds a ellipsis"),
    ],
    ids=str,
)
def test_malformed_messages_are_refused(messages: Any, said: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=said):
        tokenizer.apply_chat_template(messages)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 5 }}", "refuses these messages"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
    ],
)
def test_what_a_template_refuses_is_a_request_error(template: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ChatTemplate(template, {}).render(TALK, True)


def test_templates_may_ask_for_the_date() -> None:
    assert ChatTemplate("{{ strftime_now('%%') }}", {}).render(TALK, True) == "%"


def test_a_model_without_template_refuses_conversations(tmp_path: Path) -> None:
    found = Tokenizer.from_folder(folder_of(tmp_path))
    assert not found.has_chat_template
    with pytest.raises(RequestError, match="no chat template"):
        found.apply_chat_template(TALK)

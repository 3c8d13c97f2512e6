"""Text to tokens, and tokens to text as they come."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import bpe_tokenizer
from tokenizer_folder import CHATML, folder_of
from tokenizers import decoders
from transformers import AutoTokenizer

from tokenvm.errors import ModelError, RequestError
from tokenvm.tokenizer import IncrementalDetokenizer, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(folder_of(tmp_path_factory.mktemp("t"), chat_template=CHATML))


def test_ids_are_those_of_hugging_face(tokenizer: Tokenizer, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder_of(tmp_path))
    for text in ("hello world", "", "  hello\n\nworld 2024", "<|im_start|>hello<|im_end|>", "日本 🎉"):
        assert tokenizer.encode(text) == reference(text)["input_ids"]
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.eos_token_ids == (reference.eos_token_id,)
    assert tokenizer.bos_token_ids == (reference.bos_token_id,)


def test_special_tokens_are_hidden_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>")
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hello<|im_end|>"
    assert tokenizer.token_text(ids[0]) == "<|im_start|>"


@pytest.mark.parametrize("ids", [[-1], [0, 2**40], ["a"], [1.5]])
def test_what_cannot_be_an_id_is_refused(ids: list[Any], tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="not token ids"):
        tokenizer.decode(ids)


def test_ids_beyond_the_vocabulary_mean_no_text(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("hello")
    assert tokenizer.decode([*hello, 10**6, *hello]) == "hellohello"
    assert pushed(tokenizer, [*hello, 10**6, *hello], True) == ["hello", "", "hello", ""]


@pytest.mark.parametrize("text", ["\ud800", b"bytes", None])
def test_what_is_not_text_is_refused(text: Any, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="not valid text"):
        tokenizer.encode(text)


def pushed(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    stream = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    return [*map(stream.push, ids), stream.finish()]


@given(text=st.text(st.characters(codec="utf-8"), max_size=60), skip=st.booleans())
@settings(max_examples=200)
def test_pieces_of_a_text_join_to_the_text(text: str, skip: bool, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert "".join(pushed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@given(ids=st.lists(st.integers(0, 265), max_size=40), skip=st.booleans())
@settings(max_examples=300)
def test_pieces_of_any_tokens_join_to_the_whole(ids: list[int], skip: bool, tokenizer: Tokenizer) -> None:
    assert "".join(pushed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@given(data=st.data(), skip=st.booleans())
@settings(max_examples=150)
def test_pieces_of_long_nonsense_join_to_the_whole(
    data: st.DataObject, skip: bool, tokenizer: Tokenizer
) -> None:
    """Mostly bytes from the middle of characters, with special tokens, ids beyond the vocabulary and text between."""
    middle = [at for at in range(259) if tokenizer.token_text(at) == "\ufffd"]
    assert len(middle) == 128
    ids = data.draw(
        st.lists(st.sampled_from(middle) | st.sampled_from([0, 1, 2, 10**6, 260, 264]), max_size=150)
    )
    pieces = pushed(tokenizer, ids, skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip)


def test_a_character_comes_whole_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é🎉x")
    assert pushed(tokenizer, ids, True) == ["", "é", "", "", "", "🎉", "x", ""]


def test_bytes_that_never_became_a_character_come_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🎉")[:-1]
    assert pushed(tokenizer, ids, True) == ["a", "", "", "", "\ufffd"]


def test_a_finished_stream_starts_anew(tokenizer: Tokenizer) -> None:
    stream = IncrementalDetokenizer(tokenizer)
    ids = tokenizer.encode("hello world")
    for _ in range(2):
        assert "".join([*map(stream.push, ids), stream.finish()]) == "hello world"


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    "text", ["hello world é ", "\ufffd", "\u200d", "<|im_end|>", "🎉", "bytes", "nothing"]
)
def test_the_stream_forgets_what_it_has_given_out(text: str, skip: bool, tokenizer: Tokenizer) -> None:
    """Also where no text ever comes: end tokens that are ignored, or bytes that form no character."""
    longest = 0

    class Watching(Tokenizer):
        def __init__(self) -> None:
            self.__dict__ |= tokenizer.__dict__

        def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return super().decode(ids, skip_special_tokens)

    stream = IncrementalDetokenizer(Watching(), skip)
    odd = {"bytes": tokenizer.encode("🎉")[:1], "nothing": [10**6]}
    for token in (odd.get(text) or tokenizer.encode(text)) * 100:
        stream.push(token)
    assert longest <= 30


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of the SentencePiece kind: words begin with a mark, the first space is dropped, bytes are tokens."""
    folder = tmp_path_factory.mktemp("metaspace")
    tokens = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁hi", "▁", "x", "▁ho"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: at for at, token in enumerate(tokens)}, []))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in ("<s>", "</s>")])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


@given(parts=st.lists(st.sampled_from(["é", "🎉", "日", 258, 259, 260, 261, 0, 1]), max_size=40))
@settings(max_examples=200)
def test_pieces_of_words_and_bytes_join_to_the_text(parts: list[Any], metaspace: Tokenizer) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [byte + 2 for byte in part.encode()] if isinstance(part, str) else [part]
    assert "".join(pushed(metaspace, ids, True)) == metaspace.decode(ids)


def test_without_a_config_there_are_no_special_ids(tmp_path: Path) -> None:
    bpe_tokenizer().save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_folder(tmp_path)
    assert found.eos_token_ids == found.bos_token_ids == ()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def break_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")


def break_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")


def break_template_bytes(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "damage", [break_tokenizer, break_config, break_template, break_template_bytes, remove_tokenizer]
)
def test_damaged_files_are_model_errors(damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(folder_of(tmp_path))
    with pytest.raises(ModelError, match=r"token|template"):
        Tokenizer.from_folder(tmp_path)

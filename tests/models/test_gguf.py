"""A GGUF file becomes a Hugging Face folder with the same weights and the same tokenizer."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import CONFIG, bpe_tokenizer, llama, permuted, write_gguf
from transformers import AutoTokenizer, LlamaForCausalLM

from tokenvm.errors import ModelError
from tokenvm.models.progress import Progress, silent
from tokenvm.models.weights.gguf import convert
from tokenvm.models.weights.gguf_file import GgufFile
from tokenvm.models.weights.gguf_tokenizer import rebuild_tokenizer
from tokenvm.models.weights.pack import load_model


def converted(folder: Path, source: Path) -> Path:
    target = folder / "out"
    target.mkdir()
    convert(source, target, silent)
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama())


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("hf"), source)


def test_permuted_rows_are_what_the_test_assumes() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert permuted(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    "kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_come_back(kind: Kind, tied: bool, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=tied)
    found = load_file(converted(tmp_path, write_gguf(tmp_path / "m.gguf", model, kind)) / "model.safetensors")
    expected = model.state_dict()
    if tied:
        expected.pop("lm_head.weight")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        if weight.ndim == 2:
            stored = gguf.quants.quantize(weight.numpy(), kind)
            weight = torch.from_numpy(gguf.quants.dequantize(stored, kind)).to(torch.bfloat16)
        assert torch.equal(found[name], weight), name


def test_large_tensors_are_converted_piece_by_piece(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GgufFile(source) as file:
        whole = torch.cat(list(file.rows("output.weight")))
        backwards = np.arange(96, -1, -1)
        monkeypatch.setattr("tokenvm.models.weights.gguf_file._CHUNK_ELEMENTS", 64 * 10)
        pieces = list(file.rows("output.weight", backwards))
    assert [len(piece) for piece in pieces] == [10] * 9 + [7]
    assert torch.equal(torch.cat(pieces), whole.flip(0))


def test_hugging_face_loads_the_folder_and_agrees_with_the_original(folder: Path) -> None:
    original = llama().to(torch.bfloat16).to(torch.float32)
    again = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert (again(ids).logits - original(ids).logits).abs().max() < 0.02


def test_our_loader_accepts_the_folder_and_the_spec_is_the_original(folder: Path) -> None:
    spec = load_model(folder).spec
    assert (spec.layers, spec.hidden, spec.vocab_size) == (2, 64, 97)
    assert (spec.attention.q_heads, spec.attention.kv_heads, spec.attention.head_dim) == (4, 2, 16)
    assert spec.norm.eps == CONFIG["rms_norm_eps"]
    assert spec.rope.theta == 10000.0
    assert (spec.bos_token_ids, spec.eos_token_ids) == ((1,), (2,))
    assert spec.max_model_len == 256


def test_whatever_ends_a_turn_ends_an_answer(tmp_path: Path) -> None:
    """The ends of text, turn and message by their keys, and control tokens by their names."""
    metadata = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 7}
    metadata["tokenizer.ggml.eom_token_id"] = 9
    folder = converted(tmp_path, write_gguf(tmp_path / "m.gguf", llama(), metadata=metadata))
    assert load_model(folder).spec.eos_token_ids == (0, 7, 9, 2)  # 2 is <|im_end|>


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    spec = load_model(converted(tmp_path, write_gguf(tmp_path / "m.gguf", llama(), metadata=scaling))).spec
    assert (spec.rope.kind, spec.rope.factor) == ("linear", 4.0)


def test_the_record_names_source_and_version(source: Path, folder: Path) -> None:
    record = json.loads((folder / "tokenvm.json").read_text())
    assert record["source"] == "tiny.gguf"
    assert len(record["source_sha256"]) == 64
    assert record["converter_version"] == 3


def test_progress_ends_with_all_bytes_done(source: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    convert(source, tmp_path, reports.append)
    assert len(reports) == 21
    assert reports[-1].done == reports[-1].total > 0
    assert [report.done for report in reports] == sorted(report.done for report in reports)


@pytest.fixture(scope="module")
def tokenizer_pair(source: Path) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    with GgufFile(source) as file:
        return bpe_tokenizer(), rebuild_tokenizer(file.metadata)


@given(text=st.text())
@settings(max_examples=200)
def test_the_tokenizer_is_the_original(
    tokenizer_pair: tuple[tokenizers.Tokenizer, tokenizers.Tokenizer], text: str
) -> None:
    original, rebuilt = tokenizer_pair
    for sample in (text, f"<|im_start|>{text}<|im_end|>", f"hello world 2024 {text}"):
        assert rebuilt.encode(sample).ids == original.encode(sample).ids
    assert rebuilt.decode(rebuilt.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'ll", " pay", " 1234", "!!\n\n"]),
        ("smollm", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "!!\n\n"]),
        ("llama-bpe", ["I", "'ll", " pay", " ", "123", "4", "!!\n\n"]),
        ("qwen2", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "!!\n\n"]),
    ],
)
def test_text_is_cut_as_the_pre_tokenizer_says(pre: str, pieces: list[str]) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": []}
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bos = {"tokenizer.ggml.bos_token_id": 0}
    cutter = rebuild_tokenizer(metadata | {"tokenizer.ggml.tokens": alphabet} | bos).pre_tokenizer
    found = [text for text, _ in cutter.pre_tokenize_str("I'll pay 1234!!\n\n")]
    expected = ["".join(" " if c == " " else c for c in piece) for piece in pieces]
    if pre in ("gpt-2", "smollm"):
        expected[-1:] = ["!!", "\n\n"]
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in found] == expected


def test_a_file_that_asks_for_it_starts_prompts_with_bos(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.add_bos_token": True}
    folder = converted(tmp_path, write_gguf(tmp_path / "m.gguf", llama(), metadata=metadata))
    ids = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("hello").ids
    assert ids[0] == 1
    assert len(ids) == 2


def test_hugging_face_reads_the_tokenizer_and_the_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert text == "<|im_start|>user\nhello"


def test_an_unknown_tokenizer_is_taken_from_beside_the_file(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", llama(), metadata={"tokenizer.ggml.model": "t5"})
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ModelError,
        match=rf"'t5'; supported are 'gpt2' and 'llama': put the model's tokenizer.json.*{tmp_path}",
    ):
        convert(source, tmp_path / "out", silent)
    bpe_tokenizer().save(str(tmp_path / "tokenizer.json"))
    convert(source, tmp_path / "out", silent)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.architecture": "gemma"}, "architecture 'gemma'"),
        ({"llama.expert_count": 8}, r"llama\.expert_count is 8"),
        ({"llama.attention.sliding_window": 8}, "sliding_window"),
        ({"split.count": 2}, "one part of several"),
        ({"llama.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"llama.rope.dimension_count": 8}, r"dimension_count is 8.*\(16\)"),
        ({"llama.block_count": 3}, "model.layers.2"),
        ({"llama.block_count": 1}, "blk.1"),
        ({"llama.embedding_length": 128}, "shape"),
        ({"llama.attention.head_count": "four"}, "'four'"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'"),
        ({"tokenizer.ggml.merges": ["x y z"]}, "merges holds 'x y z'"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 9999}, "bos_token_id is 9999"),
    ],
    ids=str,
)
def test_what_is_not_covered_is_refused_by_name(metadata: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", llama(), metadata=metadata)
    with pytest.raises(ModelError, match=said) as caught:
        converted(tmp_path, source)
    assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        ("rope_freqs.weight", "rope_freqs"),
        ("blk.0.attn_q_norm.weight", "attn_q_norm"),
        ("blk.9.attn_q.weight", "model.layers.0.self_attn.q_proj"),
        ("token_embd.bias", "token_embd.bias"),
    ],
)
def test_foreign_tensors_are_refused_by_name(renamed: str, said: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", llama(), rename={"blk.0.attn_q.weight": renamed})
    with pytest.raises(ModelError, match=said):
        converted(tmp_path, source)


def test_a_missing_or_empty_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    for name, said in (("none.gguf", "does not exist"), ("empty.gguf", "damaged")):
        with pytest.raises(ModelError, match=said):
            GgufFile(tmp_path / name)


@pytest.mark.parametrize(
    "head", [b"GGML" + bytes(40), b"GGUF" + bytes(3), b"GGUF\x01" + bytes(40), b"GGUF\x00\x00\x00\x03"]
)
def test_a_foreign_file_is_a_model_error(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(head)
    with pytest.raises(ModelError, match="not a GGUF file"):
        GgufFile(tmp_path / "m.gguf")


@given(st.data())
def test_a_truncated_file_is_a_model_error(source: Path, data: st.DataObject) -> None:
    whole = source.read_bytes()
    cut = source.with_name("cut.gguf")
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 40))])
    with pytest.raises(ModelError, match="damaged"):
        GgufFile(cut)


@given(st.data())
@settings(max_examples=150)
def test_flipped_bytes_are_read_or_refused(
    source: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 9000))] = data.draw(st.sampled_from([0, 1, 2, 9, 12, 127, 255]))
    broken = tmp_path_factory.mktemp("flip")
    (broken / "m.gguf").write_bytes(content)
    with suppress(ModelError):
        folder = converted(broken, broken / "m.gguf")
        assert (folder / "tokenvm.json").is_file()

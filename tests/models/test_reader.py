"""Safetensors folders are read whole and refused when anything is off."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import edit_config, llama, save

from tokenvm.errors import ConfigError, ModelError
from tokenvm.kernels.linear import gather_rows
from tokenvm.models.registry import load_spec
from tokenvm.models.weights.pack import load_model
from tokenvm.models.weights.reader import Checkpoint

Tensors = dict[str, torch.Tensor]
QUERY = "model.layers.0.self_attn.q_proj.weight"


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> Path:
    """Save the model with its tensors changed."""
    tensors = {name: tensor.clone() for name, tensor in llama().state_dict().items()}
    change(tensors)
    save(llama(), folder)
    save_file(tensors, folder / "model.safetensors")
    return folder


def check(folder: Path) -> None:
    spec, family = load_spec(folder)
    with Checkpoint(folder) as checkpoint:
        checkpoint.check(family.tensor_shapes(spec), lambda name: family.is_ignorable(name, spec))


def test_one_file_and_shards_give_the_same_tensors(tmp_path: Path) -> None:
    one, many = save(llama(), tmp_path / "one"), save(llama(), tmp_path / "many", max_shard_size="40kB")
    assert len(list(many.glob("*.safetensors"))) > 2
    check(many)
    with Checkpoint(one) as left, Checkpoint(many) as right:
        assert left.names == right.names == llama().state_dict().keys()
        assert all(torch.equal(left.read(name), right.read(name)) for name in left.names)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path, max_shard_size="40kB")
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=lost.name):
        check(folder)


def test_a_tensor_the_index_promises_must_be_in_its_shard(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path, max_shard_size="40kB")
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    where["weight_map"]["model.norm.weight"] = where["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(where))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        check(folder)


@pytest.mark.parametrize(
    "index", ['{"weight_map": {}}', "{}", '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 3}}', "x"]
)
def test_a_damaged_index_is_a_model_error(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index\.json"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds neither model\.safetensors"):
        Checkpoint(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = rewrite(tmp_path, lambda tensors: tensors.__delitem__(QUERY))
    with pytest.raises(ModelError, match=QUERY):
        check(folder)


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    folder = rewrite(
        tmp_path, lambda tensors: tensors.update({QUERY.replace("weight", "bias"): torch.zeros(64)})
    )
    with pytest.raises(ModelError, match=r"q_proj\.bias"):
        check(folder)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    folder = rewrite(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(64, 63)}))
    with pytest.raises(ModelError, match=r"q_proj.*\[64, 63\].*\[64, 64\]"):
        check(folder)


def test_an_integer_tensor_is_refused(tmp_path: Path) -> None:
    folder = rewrite(tmp_path, lambda tensors: tensors.update({QUERY: torch.zeros(64, 64, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"q_proj.*I8"):
        check(folder)


def test_a_config_of_a_million_layers_ends_at_the_first_missing_tensor(tmp_path: Path) -> None:
    folder = edit_config(save(llama(), tmp_path), num_hidden_layers=10**12)
    with pytest.raises(ModelError, match=r"model\.layers\.2\."):
        check(folder)


def test_rope_tables_and_the_copy_of_a_tied_head_are_ignored(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    check(edit_config(rewrite(tmp_path, change), tie_word_embeddings=True))


def test_a_tied_head_is_the_embedding_itself(tmp_path: Path) -> None:
    model = load_model(save(llama(tie_word_embeddings=True), tmp_path), "float32")
    assert model.weights.ends.lm_head is model.weights.ends.embedding
    layers = [
        part
        for w in model.weights.layers
        for part in (w.attn_norm, w.qkv, w.o, w.mlp_norm, w.gate_up, w.down)
    ]
    ends = model.weights.ends
    assert model.weights.nbytes == sum(part.nbytes for part in [*layers, ends.embedding, ends.final_norm])


@pytest.mark.parametrize(
    ("name", "dtype"), [("auto", torch.bfloat16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_projections_are_stacked_in_order_and_rounded(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    reference = llama()
    layer = load_model(save(reference, tmp_path), name).weights.layers[1]
    attention, mlp = reference.model.layers[1].self_attn, reference.model.layers[1].mlp
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(gather_rows(layer.qkv, torch.arange(128)), expected.to(dtype).float())
    expected = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    assert torch.equal(gather_rows(layer.gate_up, torch.arange(192)), expected.to(dtype).float())
    assert torch.equal(layer.attn_norm, reference.model.layers[1].input_layernorm.weight)
    assert layer.attn_norm.dtype == torch.float32


def test_half_precision_checkpoints_are_read(tmp_path: Path) -> None:
    reference = llama().to(torch.float16)
    model = load_model(save(reference, tmp_path), "float32")
    found = gather_rows(model.weights.ends.embedding, torch.arange(97))
    assert torch.equal(found, reference.model.embed_tokens.weight.float())


def test_an_unknown_dtype_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'float16'.*'auto'"):
        load_model(tmp_path, "float16")


@given(st.data())
def test_a_truncated_file_is_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save_file({"a": torch.ones(3, 5), "b": torch.ones(7)}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelError, match="damaged"):
        Checkpoint(folder)


@given(st.data())
def test_a_flipped_header_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    save_file({"a": torch.ones(3, 5), "b": torch.ones(7)}, folder / "model.safetensors")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[data.draw(st.integers(0, 150))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(content)
    with suppress(ModelError), Checkpoint(folder) as checkpoint:
        checkpoint.check([("a", (3, 5)), ("b", (7,))], lambda _name: False)
        assert checkpoint.read("a").shape == (3, 5)

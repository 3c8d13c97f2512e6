"""Turn a GGUF file of the Llama type into a Hugging Face folder, once.

The tensors are dequantised to bf16 (norms to fp32, as they are stored). llama.cpp keeps the rows of the query
and key projections in the order of interleaved rotary pairs; they are put back into Hugging Face's
half-rotation order.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from tokenvm.errors import ModelError
from tokenvm.models.families import llama
from tokenvm.models.fields import Fields
from tokenvm.models.progress import Progress, Report
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.gguf_file import GgufFile
from tokenvm.models.weights.gguf_tokenizer import UnknownTokenizer, rebuild_tokenizer, special_tokens
from tokenvm.models.weights.safetensors_writer import SafetensorsWriter

CONVERTER_VERSION: Final = 1
"""Part of every converted folder's name and record: a change of this file's output must raise it."""

RECORD_NAME: Final = "tokenvm.json"
"""Written last: a folder that holds it is whole."""

_BLOCK_NAMES: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_END_NAMES: Final[Mapping[str, str]] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_MUST_BE_ABSENT: Final = (
    "llama.expert_count",
    "llama.attention.sliding_window",
    "llama.attention.key_length_mla",
)
_BESIDE: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def convert(source: Path, folder: Path, report: Report) -> None:
    """Write config, weights and tokenizer of the GGUF file `source` into `folder`, which exists and is empty.

    Raises ModelError for a file that is damaged or no Llama model; the folder is then to be thrown away.
    """
    with GgufFile(source) as gguf:
        config = _config(gguf)
        spec = llama.spec_from_config(config, str(source))
        names = _checked_names(gguf, spec)
        _write_json(folder / "config.json", config)
        _write_tokenizer(gguf, folder)
        _write_weights(gguf, names, spec, folder, report)
    record = {"converter_version": CONVERTER_VERSION, "source": source.name, "source_sha256": sha256(source)}
    _write_json(folder / RECORD_NAME, record)


def sha256(path: Path) -> str:
    """Hash a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config(gguf: GgufFile) -> dict[str, Any]:
    fields = Fields(gguf.metadata, str(gguf.path))
    _refuse_unsupported(fields)
    heads, hidden = fields.count("llama.attention.head_count"), fields.count("llama.embedding_length")
    head_dim = fields.count("llama.attention.key_length", max(1, hidden // heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if fields.count(key, head_dim) != head_dim:
            raise fields.wrong(key, gguf.metadata[key], f"the head size ({head_dim})")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{gguf.path}: tensor token_embd.weight is missing: download the file again")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": fields.count("llama.feed_forward_length"),
        "num_hidden_layers": fields.count("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.count("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": fields.count("llama.context_length"),
        "rms_norm_eps": _shortest(fields.number("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(fields.number("llama.rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(fields),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "bfloat16",
        **_special_ids(fields),
    }


def _refuse_unsupported(fields: Fields) -> None:
    architecture = fields.values.get("general.architecture")
    if architecture != "llama":
        raise ModelError(
            f"{fields.source}: architecture {architecture!r}; supported in .gguf files is 'llama': "
            "pass another file"
        )
    for key in _MUST_BE_ABSENT:
        if fields.values.get(key):
            raise ModelError(
                f"{fields.source}: {key} is {fields.values[key]!r}, which is not supported: pass another file"
            )
    if fields.count("split.count", 1) > 1:
        raise ModelError(
            f"{fields.source} is one part of several: "
            "join them with llama-gguf-split --merge and pass the result"
        )


def _shortest(value: float) -> float:
    """Return the shortest decimal that means the same float32, as the original config.json has it."""
    return float(str(np.float32(value)))


def _rope_scaling(fields: Fields) -> dict[str, Any] | None:
    kind = fields.name("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": fields.number("llama.rope.scaling.factor")}
    raise ModelError(
        f"{fields.source}: rope scaling {kind!r}; supported in .gguf files are 'none' and 'linear': "
        "pass the model as a Hugging Face folder"
    )


def _special_ids(fields: Fields) -> dict[str, int]:
    roles = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    found = {name: fields.ids(f"tokenizer.ggml.{role}_token_id") for role, name in roles.items()}
    return {name: ids[0] for name, ids in found.items() if ids}


def _checked_names(gguf: GgufFile, spec: ModelSpec) -> dict[str, str]:
    """Return safetensors name → GGUF name, in file order, checked to be exactly the model's."""
    if "rope_freqs.weight" in gguf.tensors:
        raise ModelError(
            f"{gguf.path}: rope_freqs.weight (Llama 3.1 rope scaling) is not supported in .gguf files: "
            "pass the model as a Hugging Face folder"
        )
    names = {_translated(gguf, name): name for name in gguf.tensors}
    needed: set[str] = set()
    for name, shape in llama.tensor_shapes(spec):
        needed.add(name)
        if name not in names:
            raise ModelError(f"{gguf.path}: the tensor for {name} is missing: download the file again")
        if gguf.tensors[names[name]].shape != shape:
            raise ModelError(
                f"{gguf.path}: tensor {names[name]} has shape {list(gguf.tensors[names[name]].shape)}, "
                f"not {list(shape)}: download the file again"
            )
    extra = sorted(names[name] for name in names.keys() - needed)
    if extra:
        raise ModelError(f"{gguf.path}: tensor {extra[0]} is not part of a Llama model: pass another file")
    return names


def _translated(gguf: GgufFile, name: str) -> str:
    if name in _END_NAMES:
        return _END_NAMES[name]
    match name.split("."):
        case ["blk", layer, role, "weight"] if layer.isdecimal() and role in _BLOCK_NAMES:
            return f"model.layers.{layer}.{_BLOCK_NAMES[role]}.weight"
    raise ModelError(f"{gguf.path}: tensor {name} is not part of a Llama model: pass another file")


def _write_weights(
    gguf: GgufFile, names: Mapping[str, str], spec: ModelSpec, folder: Path, report: Report
) -> None:
    shapes = {name: gguf.tensors[source].shape for name, source in names.items()}
    planned = {n: (s, torch.float32 if len(s) == 1 else torch.bfloat16) for n, s in shapes.items()}
    total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in planned.values())
    done = 0
    with SafetensorsWriter(folder / "model.safetensors", planned) as writer:
        for name, source in names.items():
            done += writer.write(name, gguf.rows(source, _row_order(name, spec, shapes[name][0])))
            report(Progress("Converting weights", done, total))


def _row_order(name: str, spec: ModelSpec, rows: int) -> npt.NDArray[np.int64] | None:
    """Return the stored rows in their new order: per head the even, then the odd; None keeps them."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    head_dim = spec.attention.head_dim
    stored = np.arange(rows, dtype=np.int64).reshape(-1, head_dim // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


def _write_tokenizer(gguf: GgufFile, folder: Path) -> None:
    try:
        tokenizer = rebuild_tokenizer(gguf.metadata)
    except UnknownTokenizer as error:
        _copy_tokenizer(gguf, folder, error)
        return
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(
            f"{gguf.path}: its tokenizer is damaged ({error}): download the file again"
        ) from error
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(gguf.metadata, tokenizer))


def _tokenizer_config(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get("llama.context_length"),
        **special_tokens(metadata),
    }
    if metadata.get("tokenizer.chat_template"):
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def _copy_tokenizer(gguf: GgufFile, folder: Path, reason: UnknownTokenizer) -> None:
    """Take the tokenizer that lies beside the file; only for files whose own cannot be rebuilt."""
    beside = gguf.path.parent
    if not (beside / "tokenizer.json").is_file():
        raise ModelError(
            f"{gguf.path}: {reason}: put the model's tokenizer.json and tokenizer_config.json into {beside}"
        )
    for name in _BESIDE:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

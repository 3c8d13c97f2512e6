"""Turn a GGUF file of a native family into a Hugging Face folder, once.

The tensors are dequantised to bf16 (norms and biases to fp32, as they are stored). For Llama, llama.cpp keeps the
rows of the query and key projections in the order of interleaved rotary pairs; they are put back into Hugging Face's
half-rotation order. For Gemma 3 it stores norms with the 1 already added, which is taken off again.
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
from tokenvm.models.progress import Progress, Report
from tokenvm.models.spec import ModelSpec
from tokenvm.models.weights.gguf_families import ROPE_FACTORS, GgufFamily, family_in
from tokenvm.models.weights.gguf_file import GgufFile
from tokenvm.models.weights.gguf_tokenizer import UnknownTokenizer, rebuild_tokenizer, special_tokens
from tokenvm.models.weights.safetensors_writer import SafetensorsWriter

CONVERTER_VERSION: Final = 3
"""Part of every converted folder's name and record: a change of this file's output must raise it."""

RECORD_NAME: Final = "tokenvm.json"
"""Written last: a folder that holds it is whole."""

_BESIDE: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def convert(source: Path, folder: Path, report: Report) -> None:
    """Write config, weights and tokenizer of the GGUF file `source` into `folder`, which exists and is empty.

    Raises ModelError for a file that is damaged or of no native family; the folder is then to be thrown away.
    """
    with GgufFile(source) as gguf:
        family = family_in(gguf)
        config = family.config(gguf)
        spec = family.recipe.spec_from_config(config, str(source))
        names = _checked_names(gguf, family, spec)
        _write_json(folder / "config.json", config)
        _write_tokenizer(gguf, folder)
        _write_weights(gguf, family, names, spec, folder, report)
    record = {"converter_version": CONVERTER_VERSION, "source": source.name, "source_sha256": sha256(source)}
    _write_json(folder / RECORD_NAME, record)


def sha256(path: Path) -> str:
    """Hash a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_names(gguf: GgufFile, family: GgufFamily, spec: ModelSpec) -> dict[str, str]:
    """Return safetensors name → GGUF name, in file order, checked to be exactly the model's."""
    stored = [name for name in gguf.tensors if name not in ROPE_FACTORS]
    names = {family.translated(gguf, name): name for name in stored}
    needed: set[str] = set()
    for name, shape in family.recipe.tensor_shapes(spec):
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
        raise family.foreign(gguf, extra[0])
    return names


def _write_weights(
    gguf: GgufFile,
    family: GgufFamily,
    names: Mapping[str, str],
    spec: ModelSpec,
    folder: Path,
    report: Report,
) -> None:
    shapes = {name: gguf.tensors[source].shape for name, source in names.items()}
    planned = {n: (s, torch.float32 if len(s) == 1 else torch.bfloat16) for n, s in shapes.items()}
    total = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in planned.values())
    done = 0
    with SafetensorsWriter(folder / "model.safetensors", planned) as writer:
        for name, source in names.items():
            order = _row_order(name, spec, shapes[name][0]) if family.interleaved else None
            rows = gguf.rows(source, order)
            if name.endswith("norm.weight") and spec.norm.offset:
                rows = (part - spec.norm.offset for part in rows)
            done += writer.write(name, rows)
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
        "model_max_length": metadata.get(f"{metadata.get('general.architecture')}.context_length"),
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

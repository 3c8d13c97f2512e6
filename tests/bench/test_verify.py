"""`tokenvm verify` passes on a model that is right, and says so when anything is not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenvm.bench.verify import run_verify
from tokenvm.bench.verify_bits import Bits, Grid, Trial, settings_for
from tokenvm.bench.verify_parity import compare
from tokenvm.config import MemoryConfig
from tokenvm.models.weights.pack import load_model
from tokenvm.tokenizer import Tokenizer

LIMITED = Trial("memory limit", "the smallest legal limit", 0, "disk", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama that reads bytes."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    ends = {"vocab_size": 260, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
    path = tmp_path_factory.mktemp("bytes")
    LlamaForCausalLM(LlamaConfig(**shape, **heads, **ends, initializer_range=0.15)).save_pretrained(path)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({byte: at for at, byte in enumerate(alphabet)}, [])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_a_right_model_passes_and_the_report_is_plain(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_verify(str(folder), full=False, base=MemoryConfig(nvme_path=str(tmp_path)))
    assert report["passed"]
    assert json.loads(json.dumps(report)) == report
    assert report["parity"]["prompt_tokens"] == [1, 31, 33, 150]
    assert report["parity"]["max_logit_difference"] <= 1e-4
    assert report["parity"]["nvme_read_bytes"] > 0
    assert {row["dtype"] for row in report["bits"]} == {"float32", "bfloat16"}
    assert sum(row["nvme_read_bytes"] > 0 for row in report["bits"]) == 8
    assert sum(row["h2d_bytes"] > 0 for row in report["bits"]) == 2
    assert "passed in" in capsys.readouterr().out


class Scripted:
    """A reference that says what it is told."""

    def __init__(self, rows: list[list[float]]) -> None:
        self._rows = [torch.tensor(row) for row in rows]

    def begin(self, token_ids: list[int]) -> torch.Tensor:
        return self._rows.pop(0)

    def feed(self, token_id: int) -> torch.Tensor:
        return self._rows.pop(0)

    def end(self) -> None:
        assert not self._rows


def test_equal_tokens_and_logits_are_a_match() -> None:
    rows = [[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]]
    found = compare(Scripted(rows), [7], [1, 0], [torch.tensor(row) for row in rows])
    assert (found.steps, found.max_difference, found.excused, found.problem) == (2, 0.0, False, "")


def test_a_logit_that_is_off_is_a_problem() -> None:
    found = compare(Scripted([[0.0, 2.0]]), [7], [1], [torch.tensor([0.002, 2.0])])
    assert "token 1: a logit differs by 0.002" in found.problem


def test_a_logit_that_is_no_number_is_a_problem() -> None:
    found = compare(Scripted([[0.0, 2.0]]), [7], [1], [torch.tensor([torch.nan, 2.0])])
    assert "token 1: a logit differs by nan" in found.problem


def test_another_token_is_a_problem_unless_the_two_are_level() -> None:
    level = compare(Scripted([[1.0, 1.0005], [0.0, 0.0]]), [7], [0, 1], [torch.tensor([1.0, 1.0])] * 2)
    assert (level.steps, level.excused, level.problem) == (1, True, "")
    apart = compare(Scripted([[1.0, 1.0018]]), [7], [0], [torch.tensor([1.0009, 1.0009])])
    assert not apart.excused
    assert apart.problem == "token 1 is 0, Transformers says 1"


@pytest.fixture
def grid(folder: Path, tmp_path: Path) -> Grid:
    settings = settings_for(MemoryConfig(), tmp_path, 16)
    prompts = [list(range(3, 103)), list(range(50, 80))]
    grid = Grid(load_model(folder), Tokenizer.from_folder(folder), settings, prompts, 8)
    assert list(grid.measure_alone()) == [100, 30]
    return grid


def test_one_bit_of_one_logit_is_noticed(grid: Grid) -> None:
    assert grid.run(LIMITED).problems == ()
    right = grid._alone[0]
    for at in (0, 7):
        logits = [*right.logits[:at], b"other", *right.logits[at + 1 :]]
        grid._alone[0] = replace(right, logits=tuple(logits))
        assert grid.run(LIMITED).problems == (f"prompt 0 differs from token {at + 1} on",)


def test_another_logprob_or_token_is_noticed(grid: Grid) -> None:
    right = grid._alone[0]
    for wrong in (replace(right, tokens=(1, *right.tokens[1:])), replace(right, logprobs=right.logprobs[1:])):
        grid._alone[0] = wrong
        assert len(grid.run(LIMITED).problems) == 1
    assert isinstance(right, Bits)


def test_a_batch_mate_that_differs_is_named(grid: Grid) -> None:
    grid._alone[1] = grid._alone[0]
    found = grid.run(Trial("batch-mates", "together", together=True))
    assert [text.split(" differs")[0] for text in found.problems] == ["prompt 1"]


def test_a_trial_that_took_another_path_is_a_problem(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grid, "_limit", lambda *_: 1 << 30)
    assert grid.run(LIMITED).problems == ("0 pages were streamed", "0 bytes came from disk")


def test_a_limit_that_is_broken_is_a_problem(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    real = grid.run(LIMITED).stats

    def more(*_: object) -> object:
        device = real["tiers"]["device"] | {"high_water_bytes": 1 << 40}
        return [grid._alone[0]], 1, real | {"tiers": real["tiers"] | {"device": device}}

    monkeypatch.setattr(Grid, "_run", more)
    (problem,) = grid.run(LIMITED).problems
    assert "were allowed" in problem

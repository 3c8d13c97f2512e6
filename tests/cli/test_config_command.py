"""`tokenvm config`: every setting with its source, and with --plan what a start would take."""

import json
from pathlib import Path

from tokenvm.config import MemoryConfig
from tokenvm.engine.launch import build_engine
from tokenvm.llm import make_settings
from tokenvm.models.weights.pack import load_model

LIMITS = ("--kv-cache-num-tokens", 1000, "--nvme-limit", "64MB", "--block-tokens", 32)
NUMBERS = ("--max-model-len", 2000, "--max-num-seqs", 5, "--max-tokens-per-forward", 64, "--threads", 2)


def test_every_setting_is_listed_with_its_source(tokenvm):
    code, out, _ = tokenvm("config", "--kv-cache-num-tokens", 1000, "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows.keys() == MemoryConfig.model_fields.keys()
    assert rows["kv_cache_num_tokens"] == {"value": "1000", "source": "command line --kv-cache-num-tokens"}


def test_a_plan_is_what_an_engine_takes(tokenvm, model_folder: Path):
    code, out, _ = tokenvm("config", "--plan", "--model", model_folder, *LIMITS, *NUMBERS, "--json")
    memory = MemoryConfig(kv_cache_num_tokens=1000, nvme_limit="64MB", block_tokens=32)
    settings = make_settings(memory, max_model_len=2000, max_num_seqs=5, max_tokens_per_forward=64, threads=2)
    engine = build_engine(load_model(model_folder), settings)
    assert code == 0
    assert json.loads(out) == engine.plan.as_dict()
    assert engine.plan.device_pages == 32
    engine.close()


def test_a_plan_is_a_card_for_people(tokenvm, model_folder: Path):
    code, out, _ = tokenvm("config", "--plan", "--model", model_folder, *LIMITS, *NUMBERS)
    assert code == 0
    for words in (
        "weights",
        "workspace",
        "32 × 32 tokens",
        "host pages",
        "off",
        "2,000",
        "Largest batch: 64",
    ):
        assert words in out


def test_a_plan_that_cannot_be_says_what_to_type(tokenvm, model_folder: Path):
    code, _, err = tokenvm(
        "config", "--plan", "--model", model_folder, "--kv-cache-num-tokens", 5, "--block-tokens", 16
    )
    assert code == 2
    assert "type kv_cache_num_tokens=32 or more" in err
    code, _, err = tokenvm("config", "--kv-limit", "1MB", "--kv-cache-num-tokens", 5)
    assert code == 2
    assert "kv_limit and kv_cache_num_tokens say the same thing twice" in err

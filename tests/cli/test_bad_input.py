"""Whatever a user can fix is one line that says what to type, exit code 2, no traceback and nothing left on disk."""

import re
import shutil

import pytest


def refused(result, *words):
    code, _, err = result
    assert code == 2, result
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert re.search(word, err), err


def ask(model, *more):
    return ("run", "--model", model, "--prompt", "hello", "--max-tokens", "4", "--no-compare", *more)


def test_the_good_case_is_good(tokenvm, model_folder):
    code, out, err = tokenvm(*ask(model_folder, "--block-tokens", "16"))
    assert (code, err) == (0, "")
    assert "KV memory" in out


def test_unknown_model(tokenvm):
    refused(tokenvm(*ask("no-such-model")), "no-such-model", "smollm2")


def test_damaged_safetensors(tokenvm, model_folder, tmp_path):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(tokenvm(*ask(broken)), "model.safetensors")


def test_damaged_gguf(tokenvm, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + b"\xff" * 500)
    refused(tokenvm(*ask(file)), "model.gguf")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt(tokenvm, model_folder, prompt):
    refused(tokenvm("run", "--model", model_folder, "--prompt", prompt), "--prompt")


def test_prompt_longer_than_the_model_allows(tokenvm, model_folder, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("abcdefghij" * 3000)
    refused(tokenvm(*ask(model_folder, "--file", long)), "shorten it to 19999 tokens")


def test_a_file_that_is_no_text(tokenvm, model_folder, tmp_path):
    refused(tokenvm(*ask(model_folder, "--file", tmp_path / "nothing")), "nothing", "UTF-8")


def test_limit_below_the_minimum_names_it(tokenvm, model_folder):
    result = tokenvm(*ask(model_folder, "--kv-limit", "1KB"))
    refused(result, "kv_limit", "at least ([0-9]+) bytes")
    smallest = re.search("at least ([0-9]+) bytes", result[2]).group(1)
    assert tokenvm(*ask(model_folder, "--kv-limit", smallest))[0] == 0


@pytest.mark.parametrize("option", ["--nvme-limit", "--host-memory"])
def test_a_tier_too_small_for_a_page(tokenvm, model_folder, option):
    refused(tokenvm(*ask(model_folder, option, "100")), option.strip("-").replace("-", "_"), "at least")


def test_unknown_configuration_key(tokenvm, model_folder, tmp_path):
    file = tmp_path / "config" / "tokenvm" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[memory]\nkv_limt = "1GB"\n')
    refused(tokenvm(*ask(model_folder)), "kv_limt", "kv_limit")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--kv-limit", "many", "kv_limit"),
        ("--block-tokens", "17", "multiple of 16"),
        ("--kv-fraction", "nan", "kv-fraction"),
        ("--kv-fraction", "2", "kv-fraction"),
        ("--max-tokens", "0", "max-tokens"),
        ("--threads", "0", "threads"),
        ("--dtype", "float8", "dtype"),
        ("--no-such-option", "1", "no-such-option"),
    ],
)
def test_values_that_make_no_sense(tokenvm, model_folder, option, value, word):
    refused(tokenvm(*ask(model_folder, option, value)), word)


def test_unwritable_nvme_path(tokenvm, model_folder):
    refused(
        tokenvm(*ask(model_folder, "--nvme-path", "/proc/nowhere", "--nvme-limit", "1GB")), "/proc/nowhere"
    )
    refused(tokenvm(*ask(model_folder, "--nvme-path", "/proc/nowhere")), "/proc/nowhere")


def test_full_disk(tokenvm, model_folder, tmp_path, monkeypatch):
    def full(fd, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    words = tmp_path / "words.txt"
    words.write_text("some words " * 100)
    arguments = (
        "--file",
        words,
        "--nvme-path",
        tmp_path / "kv",
        "--block-tokens",
        "16",
        "--kv-fraction",
        "0.1",
    )
    refused(tokenvm(*ask(model_folder, *arguments)), "nvme_path", "bytes")
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["lock"]


def test_token_ids_outside_the_vocabulary(model_folder):
    from tokenvm import LLM, RequestError, SamplingParams

    with LLM(model_folder) as llm:
        for ids in ([1, 100_000], [-1], [], [1.5]):
            with pytest.raises(RequestError):
                llm.generate([{"prompt_token_ids": ids}])
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        assert len(llm.generate([{"prompt_token_ids": [1, 2]}], params)[0].outputs[0].token_ids) == 3


def test_version_and_help(tokenvm):
    assert tokenvm("--version")[:2] == (0, "tokenvm 0.1.0\n")
    assert "verify" in tokenvm("--help")[1]
    assert "kernels" in tokenvm("env")[1]
    assert "default" in tokenvm("config")[1]
    assert "command line" in tokenvm("config", "--kv-limit", "64MB")[1]

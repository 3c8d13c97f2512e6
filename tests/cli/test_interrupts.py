"""A run that names no folder for its pages leaves nothing behind, however it is ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def heed_interrupts():
    """Let a child end by Ctrl-C, also where the tests run in the background, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def long_run(model_folder, tmp_path):
    """Start a run that goes on for a while; give it back once it computes, with its folder of pages."""
    words = tmp_path / "words.txt"
    words.write_text("some words " * 1000)
    folder = tmp_path / "cache" / "kv"
    command = [sys.executable, "-m", "tokenvm", "run", "--model", str(model_folder), "--file", str(words)]
    command += ["--prompt", "go", "--max-tokens", "9000", "--block-tokens", "16"]
    environ = os.environ | {
        "TOKENVM_CACHE": str(tmp_path / "cache"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environ, preexec_fn=heed_interrupts
    )
    try:
        line = process.stdout.readline()
        assert "tokens of prompt need" in line, process.stderr.read()
        while not slabs(process):
            assert process.poll() is None, process.stderr.read()
        yield process, folder
    finally:
        process.kill()
        process.communicate()


def slabs(process):
    """The nameless files that the process has open; a file that it closes meanwhile is not one of them."""
    return [fd for fd in Path(f"/proc/{process.pid}/fd").iterdir() if "(deleted)" in target(fd)]


def target(link):
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


def test_ctrl_c_ends_with_130_and_leaves_no_files(long_run):
    process, folder = long_run
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert list(folder.iterdir()) == []


def test_a_killed_run_leaves_no_files(long_run):
    process, folder = long_run
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert list(folder.iterdir()) == []
    assert oct(folder.stat().st_mode & 0o777) == "0o700"

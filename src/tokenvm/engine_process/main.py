"""The engine process from its first message to its end: makes the engine, serves, and says why it ended."""

from __future__ import annotations

import contextlib
import signal
import socket
import traceback
from pathlib import Path
from typing import Final

import torch

from tokenvm.borrowed.load import load_any_model
from tokenvm.config import MemoryConfig
from tokenvm.engine.engine import Engine
from tokenvm.engine.launch import build_engine
from tokenvm.engine_process.channel import Channel, Hangup
from tokenvm.engine_process.loop import IDLE_S, Loop
from tokenvm.engine_process.messages import (
    Died,
    Loading,
    Ready,
    Start,
    StartFailed,
    failure_of,
    for_engine,
)
from tokenvm.errors import TokenVMError
from tokenvm.llm import make_settings
from tokenvm.models.fetch import resolve_model
from tokenvm.models.progress import Progress
from tokenvm.tokenizer import Tokenizer

LAST_WORDS_S: Final = 2.0
"""How long an engine that ends waits for the front process to take its last message."""


def main(handle: int) -> int:
    """Be the engine process, with the socket `handle` to the front process; return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front process
    torch.set_num_threads(1)  # the threads of our kernels have the cores; torch's would spin on them
    channel = Channel(socket.socket(fileno=handle))
    with contextlib.closing(channel), contextlib.suppress(Hangup):
        try:
            _serve(channel)
        except Hangup:
            raise
        except BaseException:
            channel.send(Died(traceback.format_exc()))
            channel.flush(LAST_WORDS_S)
            return 1
        channel.flush(LAST_WORDS_S)
    return 0


def _serve(channel: Channel) -> None:
    start = _first_message(channel)
    try:
        engine = _make(start, channel)
    except TokenVMError as error:
        channel.send(StartFailed(failure_of(error)))
        return
    with contextlib.closing(engine):
        Loop(engine, channel).run()


def _first_message(channel: Channel) -> Start:
    messages: list[bytes] = []
    while not messages:
        messages = channel.receive(IDLE_S)
    start = for_engine(messages[0])
    if not isinstance(start, Start) or len(messages) > 1:
        raise ValueError(f"the first message is {type(start).__name__}, not Start alone")
    return start


def _make(start: Start, channel: Channel) -> Engine:
    """Make the engine that is asked for, and say that it stands."""

    def report(progress: Progress) -> None:
        channel.send(Loading(progress.message, progress.done, progress.total))
        channel.flush()

    folder = resolve_model(start.model, progress=report)
    report(Progress(f"Loading the weights of {start.model}"))
    model = load_any_model(folder, start.dtype)
    report(Progress("Making the engine"))
    settings = make_settings(MemoryConfig.model_validate(start.memory), **start.numbers)
    spoken = Path(start.tokenizer or folder)
    engine = build_engine(model, settings, tokenizer=lambda: Tokenizer.from_folder(spoken))
    channel.send(Ready(str(folder), frozenset(model.spec.eos_token_ids), engine.plan.as_dict()))
    channel.flush()
    return engine

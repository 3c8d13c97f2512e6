"""The engine process between start and end: obeys messages between steps, and sends what each step brought."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from tokenvm.engine.engine import Engine, StepResult
from tokenvm.engine_process.channel import MAX_UNSENT_BYTES, Channel, Hangup
from tokenvm.engine_process.messages import (
    Abort,
    Accepted,
    Ask,
    Leave,
    Refused,
    Start,
    Stepped,
    Stop,
    Submit,
    ToEngine,
    Told,
    failure_of,
    for_engine,
)
from tokenvm.errors import RequestError, StorageError, TokenVMError
from tokenvm.schedule.plan import Event, FinishedEvent, TokenEvent
from tokenvm.vocab import SeqId

IDLE_S: Final = 2.0
"""How often an idle engine looks whether its parent is still there."""

PAUSE_S: Final = 0.001
"""How long to wait for a message after a step in which nothing could run."""


class Loop:
    """Obeys messages and steps until told to leave or until nobody listens any more."""

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._parent = os.getppid()
        self._unfinished: dict[str, int] = {}  # request → how many of its sequences have not ended
        self._speaking: set[SeqId] = set()  # sequences that have a token and no end
        self._leaving = False

    def run(self) -> None:
        """Serve. Raises Hangup when the front process has gone."""
        wait_s = IDLE_S
        while not self._leaving:
            for payload in self._channel.receive(wait_s):
                self._obey(for_engine(payload))
            wait_s = self._step() if self._engine.has_work else IDLE_S
            self._channel.flush(IDLE_S if self._channel.unsent_bytes > MAX_UNSENT_BYTES else 0.0)
            if os.getppid() != self._parent:
                raise Hangup

    def _step(self) -> float:
        """Step once; return how long to wait for messages before the next step."""
        try:
            result = self._engine.step()
        except StorageError as error:
            self._refuse_all(error)
            return 0.0
        for name, failure in result.failures.items():  # before their ends, which nobody hears of then
            self._channel.send(Refused(name, failure_of(failure)))
        self._tell(result)
        return 0.0 if result.tokens else PAUSE_S

    def _obey(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Abort(name):
                self._tell(StepResult(tuple(self._engine.abort(name)), {}, 0))
            case Stop(seq):
                if seq in self._speaking:
                    self._tell(StepResult((self._engine.stop(seq),), {}, 0))
            case Ask(number):
                self._channel.send(Told(number, self._engine.stats()))
            case Leave():
                self._leaving = True
            case Start():
                raise ValueError("an engine is started once")

    def _submit(self, message: Submit) -> None:
        try:
            request = message.request
            seqs = self._engine.add(request)
            self._unfinished[message.name] = len(seqs)
            self._channel.send(Accepted(message.name, seqs))
        except (RequestError, StorageError) as error:
            self._channel.send(Refused(message.name, failure_of(error)))

    def _refuse_all(self, error: TokenVMError) -> None:
        """A tier failed under everybody: nobody who runs or waits gets an answer."""
        for name in list(self._unfinished):
            self._note(self._engine.abort(name))
            self._channel.send(Refused(name, failure_of(error)))

    def _tell(self, result: StepResult) -> None:
        if not (result.events or result.scores or result.begins):
            return
        self._note(result.events)
        tokens = [event for event in result.events if isinstance(event, TokenEvent)]
        ends = [event for event in result.events if isinstance(event, FinishedEvent)]
        told = (result.choices, result.scores, result.begins, result.began_s)
        self._channel.send(Stepped(tokens, ends, *told))

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, TokenEvent):
                self._speaking.add(event.seq)
            else:
                self._speaking.discard(event.seq)
                self._unfinished[event.request_id] -= 1
                if not self._unfinished[event.request_id]:
                    del self._unfinished[event.request_id]

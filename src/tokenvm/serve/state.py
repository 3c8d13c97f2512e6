"""What all endpoints of a server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request

from tokenvm.serve.archive import Archive, Record
from tokenvm.serve.keeper import Keeper
from tokenvm.serve.meter import Meter
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.settings import ServeSettings
from tokenvm.serve.turnstile import Turnstile

DEFAULT = "default"
"""A name of whatever model is served."""


class RunsBatches(Protocol):
    """Where batches are begun and cancelled."""

    def begin(self, record: Record) -> None:
        """Go on with a batch."""

    async def cancel(self, id_: str) -> Record:
        """Stop a batch, unless it has ended meanwhile; return it as it is now."""


@dataclass(slots=True)
class ServeState:
    """The engine, its limits and what is counted. One event loop uses it.

    `archive` and `runner` are there while the server runs, if it has a folder for files and batches.
    """

    keeper: Keeper
    settings: ServeSettings
    turnstile: Turnstile
    meter: Meter
    created: int = field(default_factory=lambda: int(time.time()))
    archive: Archive | None = None
    runner: RunsBatches | None = None

    def refuse_model(self, name: str) -> None:
        """Raise Refusal unless `name` is a name of the model that is served."""
        if name not in (self.settings.model, DEFAULT):
            raise Refusal(
                f"the model {name!r} is not served here: ask for {self.settings.model!r} or {DEFAULT!r}",
                status=404,
                param="model",
                code="model_not_found",
            )


def archive_of(request: Request) -> Archive:
    """Return where files and batches are kept. Raises Refusal where this server keeps none."""
    archive = state_of(request).archive
    if archive is None:
        raise _no_archive()
    return archive


def runner_of(request: Request) -> RunsBatches:
    """Return what runs batches. Raises Refusal where this server keeps none."""
    runner = state_of(request).runner
    if runner is None:
        raise _no_archive()
    return runner


def _no_archive() -> Refusal:
    text = "this server keeps no files and batches, as its log says: start it with a --state-dir of its own"
    return Refusal(text, status=503, code="no_state_dir", headers={"X-Should-Retry": "false"})


def state_of(request: Request) -> ServeState:
    """Return the state of the server that a request came to."""
    state: ServeState = request.app.state.serve
    return state

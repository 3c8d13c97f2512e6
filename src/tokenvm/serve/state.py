"""What all endpoints of a server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import Request

from tokenvm.serve.keeper import Keeper
from tokenvm.serve.meter import Meter
from tokenvm.serve.refusal import Refusal
from tokenvm.serve.settings import ServeSettings
from tokenvm.serve.turnstile import Turnstile

DEFAULT = "default"
"""A name of whatever model is served."""


@dataclass(slots=True)
class ServeState:
    """The engine, its limits and what is counted. One event loop uses it."""

    keeper: Keeper
    settings: ServeSettings
    turnstile: Turnstile
    meter: Meter
    created: int = field(default_factory=lambda: int(time.time()))

    def refuse_model(self, name: str) -> None:
        """Raise Refusal unless `name` is a name of the model that is served."""
        if name not in (self.settings.model, DEFAULT):
            raise Refusal(
                f"the model {name!r} is not served here: ask for {self.settings.model!r} or {DEFAULT!r}",
                status=404,
                param="model",
                code="model_not_found",
            )


def state_of(request: Request) -> ServeState:
    """Return the state of the server that a request came to."""
    state: ServeState = request.app.state.serve
    return state

"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

VLLM: Final = "vllm"
"""As `metrics_compat`: the metrics also under the names that vLLM's dashboards read."""


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits, secrets and names of a server; sizes in bytes, times in seconds.

    `model` is what it is called in answers; "default" names it too. At most `max_waiting` sequences wait beside those
    that may run. `max_logprobs` bounds the log-probabilities of each token; -1 does not. `restart_wait_s`: how long a
    request waits for an engine that is being restarted. `folder` is where uploaded files and batches are kept.
    """

    model: str
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_waiting: int = 4096
    max_body_bytes: int = 32 << 20
    max_upload_bytes: int = 200 << 20
    max_prompts: int = 1024
    max_n: int = 128
    max_logprobs: int = 20
    request_timeout_s: float = 600.0
    restart_wait_s: float = 4.0
    cors_origins: tuple[str, ...] = ()
    metrics_compat: str = ""
    folder: Path = Path("tokenvm-serve")

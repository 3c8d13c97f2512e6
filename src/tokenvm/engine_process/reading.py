"""Reading prompts in an event loop that others use too."""

from __future__ import annotations

import asyncio
from typing import Final

from tokenvm.prompts import Prompt, read_prompt
from tokenvm.tokenizer import Tokenizer

LONG_TEXT: Final = 20_000
"""Characters from which on a prompt is tokenised on another thread."""


async def read_aside(prompt: Prompt, tokenizer: Tokenizer) -> tuple[tuple[int, ...], str | None]:
    """Do what `read_prompt` does; a long text makes nobody wait."""
    if isinstance(prompt, str) and len(prompt) >= LONG_TEXT:
        return await asyncio.to_thread(read_prompt, prompt, tokenizer)
    return read_prompt(prompt, tokenizer)

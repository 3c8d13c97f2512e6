"""Ropes whose angles depend on how long the pass is that computes them."""

from __future__ import annotations

from typing import Any


def switches_at(config: Any) -> list[tuple[int, bool]]:
    """Return, for each such rope of a model, the length beyond which its angles change, and whether they go on to.

    Those of "longrope" change once, those of "dynamic" with every length. Layers may have ropes by their type.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    found = []
    for rope in (ropes, *ropes.values()):
        kind = (rope.get("rope_type") or rope.get("type") or "") if isinstance(rope, dict) else ""
        if kind == "longrope" or "dynamic" in kind:
            original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            found.append((int(original), kind != "longrope"))
    return found

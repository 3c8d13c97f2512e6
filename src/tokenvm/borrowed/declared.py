"""What a config declares that the calls of a short trial do not show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenvm.borrowed.trial import LayerShape


def has_longrope(config: Any) -> bool:
    """Whether a rope chooses its factors by the longest sequence of a pass, for all layers or for those of one type."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return any(
        isinstance(rope, dict) and "longrope" in (rope.get("rope_type"), rope.get("type"))
        for rope in (ropes, *ropes.values())
    )


def hides_windows(config: Any, shapes: Sequence[LayerShape]) -> bool:
    """Whether layers that are to see a window only do not ask attention for it: they rely on a mask."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        declared = zip(kinds, shapes, strict=False)
        return any(kind == "sliding_attention" and not shape.window for kind, shape in declared)
    window, longest = (getattr(config, key, None) for key in ("sliding_window", "max_position_embeddings"))
    unused = getattr(config, "use_sliding_window", True) is False or any(shape.window for shape in shapes)
    return bool(window) and not unused and (longest is None or window < longest)

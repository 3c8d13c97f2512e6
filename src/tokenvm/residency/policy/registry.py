"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tokenvm.errors import ConfigError
from tokenvm.residency.policy.base import NoPolicy, Policy
from tokenvm.residency.policy.lru import Lru

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType({"lru": Lru, "none": NoPolicy})


def make_policy(name: str) -> Policy:
    """Make a fresh policy; ConfigError for a name that does not exist."""
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r} does not exist: choose one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()

"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tokenvm.errors import ConfigError
from tokenvm.residency.policy.arc import Arc
from tokenvm.residency.policy.auto import Auto
from tokenvm.residency.policy.base import NoPolicy, Policy
from tokenvm.residency.policy.lru import Lru
from tokenvm.residency.policy.one_by_one import OneByOne
from tokenvm.residency.policy.predictor import Predictor
from tokenvm.residency.policy.s3_fifo import S3Fifo
from tokenvm.residency.policy.two_q import TwoQ


def _auto() -> Policy[Any]:
    return Auto[Any]((Predictor, Lru, Arc))


POLICIES: Mapping[str, Callable[[], Policy[Any]]] = MappingProxyType(
    {
        "lru": Lru,
        "2q": TwoQ,
        "arc": Arc,
        "s3fifo": S3Fifo,
        "predictor": Predictor,
        "auto": _auto,
        "none": NoPolicy,
    }
)


def make_policy(name: str) -> Policy[Any]:
    """Make a fresh policy for units that requests ask for in runs; ConfigError for a name that does not exist."""
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r} does not exist: choose one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()


def make_device_policy(name: str, units: int) -> Policy[Any]:
    """Make a fresh policy for one tier with room for so many units, that is told of single units alone."""
    policy = OneByOne(make_policy(name))
    policy.resize(units)
    return policy

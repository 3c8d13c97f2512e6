"""Requests of a trace: when they came, which pages they asked for. One small reader for each format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from pathlib import Path
from random import Random
from types import MappingProxyType

from tokenvm.errors import ConfigError
from tokenvm.vocab import PageKey

BLOCK_TOKENS = 512
"""Tokens of a block in both formats; of a trace without block ids, by our choice."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request. `keys` name the blocks of its prompt; equal keys, equal prefixes."""

    arrival_s: float
    keys: tuple[PageKey, ...]
    input_tokens: int
    output_tokens: int


def read_mooncake(lines: Iterable[str]) -> list[Visit]:
    """Read JSON lines with timestamp (ms), input_length, output_length and hash_ids."""
    visits = []
    for line in lines:
        row = json.loads(line)
        keys = tuple(_key(name) for name in row["hash_ids"])
        visits.append(Visit(row["timestamp"] / 1e3, keys, row["input_length"], row["output_length"]))
    return visits


def read_azure(lines: Iterable[str]) -> list[Visit]:
    """Read CSV with TIMESTAMP, ContextTokens and GeneratedTokens. It does not say who shares what: nobody does."""
    visits: list[Visit] = []
    names, first = count(), 0.0
    for row in csv.DictReader(lines):
        at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        first = first or at
        tokens = int(row["ContextTokens"])
        keys = tuple(_key(next(names)) for _ in range(-(-tokens // BLOCK_TOKENS)))
        visits.append(Visit(at - first, keys, tokens, int(row["GeneratedTokens"])))
    return visits


READERS: Mapping[str, Callable[[Iterable[str]], list[Visit]]] = MappingProxyType(
    {"mooncake": read_mooncake, "azure": read_azure}
)


def read_trace(path: Path, form: str = "auto") -> list[Visit]:
    """Return the requests of a file in the order of their arrival.

    `form` names a reader; auto: azure for .csv, else mooncake. ConfigError for a file that cannot be read.
    """
    form = ("azure" if path.suffix == ".csv" else "mooncake") if form == "auto" else form
    if form not in READERS:
        raise ConfigError(f'there is no trace format "{form}": type --format {" or ".join(READERS)}')
    try:
        with path.open(encoding="utf-8") as lines:
            visits = READERS[form](lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no trace in the format {form} ({error}): type --format") from error
    if not visits:
        raise ConfigError(f"{path} has no requests: give another --trace")
    return sorted(visits, key=lambda visit: visit.arrival_s)


def perturbed(visits: Iterable[Visit], seed: int, spread: float = 0.25) -> list[Visit]:
    """Return the trace with other names, and every pause before a request that goes on from another changed.

    By a factor drawn from 1 / (1 + spread) to 1 + spread. Who goes on from whom stays, and so does what begins anew.
    """
    random = Random(seed)
    names: dict[PageKey, PageKey] = {}
    last: dict[PageKey, Visit] = {}
    moved: dict[int, float] = {}
    changed = []
    for visit in visits:
        known = [last[key] for key in visit.keys[:1] if key in last]
        for key in visit.keys:
            if key not in last:
                break
            known = [last[key]]
        arrival_s = visit.arrival_s
        if known:
            factor = (1 + spread) ** random.uniform(-1, 1)
            arrival_s = moved[id(known[0])] + (visit.arrival_s - known[0].arrival_s) * factor
        moved[id(visit)] = arrival_s
        last.update(dict.fromkeys(visit.keys, visit))
        for key in visit.keys:
            names.setdefault(key, _key(random.getrandbits(63)))
        changed.append(replace(visit, arrival_s=arrival_s, keys=tuple(names[key] for key in visit.keys)))
    return sorted(changed, key=lambda visit: visit.arrival_s)


def _key(name: int) -> PageKey:
    return PageKey(int(name).to_bytes(8, "little"))

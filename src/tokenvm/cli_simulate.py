"""`tokenvm simulate`: how much of a real service's prompts each policy would find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenvm.cli_options import Json
from tokenvm.errors import ConfigError
from tokenvm.sizes import parse_size

SecondHalf = Annotated[
    bool, typer.Option("--second-half", help="Count only the second half of the requests.")
]
Perturb = Annotated[
    int, typer.Option(min=0, help="A seed: rename all blocks and change every pause by up to a quarter.")
]


def simulate(
    trace: Annotated[Path, typer.Option(help="A file of requests, such as a Mooncake or an Azure trace.")],
    capacity_blocks: Annotated[
        str, typer.Option(help="Blocks of 512 tokens that are kept, comma separated.")
    ] = "5000",
    policy: Annotated[str, typer.Option(help="Names, comma separated, or all.")] = "all",
    form: Annotated[str, typer.Option("--format", help="auto, mooncake or azure.")] = "auto",
    token_bytes: Annotated[int, typer.Option(min=1, help="Bytes of KV a token.")] = 23040,
    read_bandwidth: Annotated[
        str, typer.Option(help="Bytes a second from where pages are kept.")
    ] = "1.2GB/s",
    prefill_rate: Annotated[
        float, typer.Option(min=1.0, help="Tokens of prompts computed a second.")
    ] = 60000.0,
    speed: Annotated[
        float, typer.Option(min=0.0, help="Arrivals, times as fast as in the trace; 0: each request alone.")
    ] = 1.0,
    second_half: SecondHalf = False,
    perturb: Perturb = 0,
    as_json: Json = False,
) -> None:
    """Replay a trace through the prefix index under each policy, beside the offline optimum."""
    from rich.console import Console

    from tokenvm.simulate.costs import Costs
    from tokenvm.simulate.figures import policies_of, show
    from tokenvm.simulate.figures import simulate as replay
    from tokenvm.simulate.trace import BLOCK_TOKENS, perturbed, read_trace

    names, capacities = policies_of(policy), _capacities(capacity_blocks)
    visits = read_trace(trace, form)
    if perturb:
        visits = perturbed(visits, perturb)
    costs = Costs(token_bytes * BLOCK_TOKENS, _rate(read_bandwidth), prefill_rate, speed)
    rows = replay(visits, capacities, names, costs, len(visits) // 2 if second_half else 0)
    show(rows, Console(highlight=False))
    if as_json:
        typer.echo(json.dumps({"policies": rows, "trace": trace.name, "requests": len(visits)}))


def _rate(text: str) -> float:
    rate = parse_size(text.removesuffix("/s"), "read_bandwidth")
    if not rate:
        raise ConfigError('--read-bandwidth 0 reads nothing: type --read-bandwidth "1.2GB/s"')
    return float(rate)


def _capacities(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f'--capacity-blocks "{text}" is not a list of whole numbers above 0: type --capacity-blocks 1000,5000'
        )
    return [int(part) for part in parts]

"""`tokenvm serve` and `tokenvm ping`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tokenvm.cli_options import (
    BlockTokens,
    Dtype,
    HostMemory,
    KvCacheDtype,
    KvLimit,
    KvTokens,
    MaxModelLen,
    MaxNumSeqs,
    MaxTokensPerForward,
    NoDisk,
    NvmeLimit,
    NvmePath,
    Threads,
    VramLimit,
    merged_memory,
    takes,
)
from tokenvm.errors import ConfigError
from tokenvm.sizes import format_size, parse_size

if TYPE_CHECKING:
    from tokenvm.models.progress import Progress
    from tokenvm.serve.run import Binding
    from tokenvm.serve.settings import ServeSettings

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Served = Annotated[str, typer.Argument(help="A built-in name, a Hugging Face folder or a .gguf file.")]
Host = Annotated[str, typer.Option(help="Address to listen on; only this machine by default.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is any free one.")]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(help="A key that is let in. Whoever lists processes sees it: prefer --api-key-file."),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="Keys that are let in, one a line. Also: TOKENVM_API_KEY, comma separated."),
]


@dataclass(frozen=True)
class MemoryOptions:
    """Settings of the memory."""

    vram_limit: VramLimit = None
    kv_limit: KvLimit = None
    kv_cache_num_tokens: KvTokens = None
    host_memory: HostMemory = None
    nvme_path: NvmePath = None
    nvme_limit: NvmeLimit = None
    no_disk: NoDisk = False
    block_tokens: BlockTokens = None
    kv_cache_dtype: KvCacheDtype = None


@dataclass(frozen=True)
class EngineOptions:
    """Arguments of AsyncLLM."""

    tokenizer: Annotated[Path | None, typer.Option(help="Folder of another tokenizer.")] = None
    max_model_len: MaxModelLen = None
    max_num_seqs: MaxNumSeqs = None
    max_tokens_per_forward: MaxTokensPerForward = None
    threads: Threads = None
    dtype: Dtype = "auto"
    seed: Annotated[int, typer.Option(help="Seed of requests that bring none.")] = 0
    enable_prefix_caching: Annotated[bool, typer.Option(help="Share pages of requests that begin alike.")] = (
        True
    )


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens, whom it lets in, and what it bounds."""

    host: Host = "127.0.0.1"
    port: Port = 10210
    api_key: ApiKey = None
    api_key_file: ApiKeyFile = None
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None
    max_waiting: Annotated[int, typer.Option(min=0, help="Sequences that may wait; more get 429.")] = 4096
    max_body: Annotated[str, typer.Option(help="Largest request.")] = "32MiB"
    max_upload: Annotated[str, typer.Option(help="Largest uploaded file.")] = "200MB"
    max_prompts: Annotated[int, typer.Option(min=1, help="Most prompts of one request.")] = 1024
    max_n: Annotated[int, typer.Option(min=1, help="Most answers to one prompt.")] = 128
    max_logprobs: Annotated[
        int, typer.Option(min=-1, help="Most log-probabilities for each token; -1 is no bound.")
    ] = 20
    request_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a request may take.")] = 600.0
    restart_wait: Annotated[
        float, typer.Option(min=0, help="Seconds that requests wait for an engine that is being restarted.")
    ] = 4.0
    drain: Annotated[float, typer.Option(min=1, help="Seconds that requests have at SIGTERM.")] = 30.0
    metrics_port: Annotated[int, typer.Option(min=0, help="Port of metrics on 127.0.0.1; 0 is none.")] = 9090
    metrics_compat: Annotated[str, typer.Option(help="vllm: metrics also under vLLM's names.")] = ""
    cors_origin: Annotated[list[str] | None, typer.Option(help="A web page's origin that may ask.")] = None
    ssl_certfile: Annotated[Path | None, typer.Option(help="Certificate; then HTTPS is spoken.")] = None
    ssl_keyfile: Annotated[Path | None, typer.Option(help="The certificate's key.")] = None
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text"
    log_requests: Annotated[bool, typer.Option(help="Write a line for each request.")] = True
    state_dir: Annotated[Path | None, typer.Option(help="Folder of uploaded files and batches.")] = None


@takes(MemoryOptions, EngineOptions, ServerOptions)
def serve(memory: MemoryOptions, engine: EngineOptions, server: ServerOptions, *, model: Served) -> None:
    """Serve a model to OpenAI's clients."""
    from tokenvm.async_llm import AsyncLLM
    from tokenvm.serve.logs import set_up_logs
    from tokenvm.serve.run import Binding, run_server

    _one_of("log-format", server.log_format, ("text", "json"))
    _one_of("metrics-compat", server.metrics_compat, ("", "vllm"))
    config = merged_memory(**asdict(memory)).config
    settings = _settings(model, server)
    binding = Binding(
        server.host, server.port, server.ssl_certfile, server.ssl_keyfile, server.drain, server.metrics_port
    )
    _check(binding, settings.api_keys)
    set_up_logs(server.log_format == "json", server.log_requests)
    make = partial(AsyncLLM.start, model, memory=config, progress=_progress, **asdict(engine))
    run_server(make, settings, binding, partial(_announce, settings, binding))


def _settings(model: str, server: ServerOptions) -> ServeSettings:
    from tokenvm.models.fetch import default_cache_dir
    from tokenvm.serve.keys import read_keys
    from tokenvm.serve.settings import ServeSettings

    return ServeSettings(
        model=server.served_model_name or model,
        api_keys=read_keys(server.api_key or (), server.api_key_file, os.environ),
        max_waiting=server.max_waiting,
        max_body_bytes=parse_size(server.max_body, "--max-body"),
        max_upload_bytes=parse_size(server.max_upload, "--max-upload"),
        max_prompts=server.max_prompts,
        max_n=server.max_n,
        max_logprobs=server.max_logprobs,
        request_timeout_s=server.request_timeout,
        restart_wait_s=server.restart_wait,
        cors_origins=tuple(server.cors_origin or ()),
        metrics_compat=server.metrics_compat,
        folder=server.state_dir or default_cache_dir(os.environ) / "serve",
    )


def _check(binding: Binding, keys: tuple[str, ...]) -> None:
    if (binding.certificate is None) != (binding.key is None):
        raise ConfigError("HTTPS takes both: type --ssl-certfile FILE --ssl-keyfile FILE")
    for file in filter(None, (binding.certificate, binding.key)):
        if not file.is_file():
            raise ConfigError(
                f"{file} is not a file: name the PEM file that --ssl-certfile or --ssl-keyfile means"
            )
    if binding.host not in LOOPBACK and not keys:
        typer.echo(
            f"warning: whoever reaches {binding.host} may use this server: set TOKENVM_API_KEY, or --host 127.0.0.1",
            err=True,
        )


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f'--{option} "{value}" is not known: type {" or ".join(filter(None, allowed))}')


def _progress(progress: Progress) -> None:
    if not progress.done:
        typer.echo(progress.message, err=True)


def _announce(settings: ServeSettings, binding: Binding, plan: dict[str, Any], port: int) -> None:
    """Print what the memory holds, and a command that asks something."""
    scheme = "http" if binding.certificate is None else "https"
    key = ' -H "Authorization: Bearer $TOKENVM_API_KEY"' if settings.api_keys else ""
    tiers = {"device": plan["device_pages"], "host": plan["host_pages"], "disk": plan["disk_pages"]}
    pages = ", ".join(f"{count} on {tier}" for tier, count in tiers.items() if count)
    body = '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}'
    lines = (
        f"{settings.model}: weights {format_size(plan['weight_bytes'])}, KV {format_size(plan['kv_bytes'])} "
        f"on the device, {plan['threads']} threads",
        f"pages of {plan['block_tokens']} tokens: {pages}; up to {plan['crowd']} sequences at once, "
        f"{plan['max_model_len']} tokens each",
        f"serving on {scheme}://{binding.host}:{port}/v1, stop with Ctrl-C. Try:",
        f"  curl {scheme}://{binding.host}:{port}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d '{body}'",
    )
    typer.echo("\n".join(lines))
    sys.stdout.flush()


def ping(
    text: Annotated[str, typer.Argument(help="What to say.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="As a conversation, not as a text to go on with.")
    ] = False,
    host: Host = "127.0.0.1",
    port: Port = 10210,
    url: Annotated[
        str | None, typer.Option(help="The server's address, instead of --host and --port.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model's name there.")] = "default",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 100,
    n: Annotated[int, typer.Option(min=1, help="How many answers.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    hide: Annotated[bool, typer.Option("--hide", help="Print the usage alone.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="Ask again so often while there is no answer.")] = 0,
) -> None:
    """Ask a running server something. TOKENVM_API_KEY is sent along if set."""
    from tokenvm.serve.ping import Question, ask_server

    address = url or f"http://{host}:{port}"
    question = Question(text, chat=chat, model=model, max_tokens=max_tokens, n=n, temperature=temperature)
    key = os.environ.get("TOKENVM_API_KEY", "").partition(",")[0]
    for line in ask_server(address, question, key=key, hide=hide, retries=retries):
        typer.echo(line)

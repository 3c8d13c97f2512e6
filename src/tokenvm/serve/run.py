"""A server from its start to its end: socket, engine, signals."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
import uvloop

from tokenvm.errors import ConfigError
from tokenvm.serve.app import create_app
from tokenvm.serve.keeper import Keeper, Make
from tokenvm.serve.metrics import export_on_port
from tokenvm.serve.settings import ServeSettings

LOG: Final = logging.getLogger("tokenvm.serve")
BACKLOG: Final = 2048

Announce = Callable[[dict[str, Any], int], None]
"""Is told the memory plan and the port once requests can be sent."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a server listens and how it ends. Port 0 is any free one; `metrics_port` 0 is none."""

    host: str = "127.0.0.1"
    port: int = 10210
    certificate: Path | None = None
    key: Path | None = None
    drain_s: float = 30.0
    metrics_port: int = 9090


def run_server(make: Make, settings: ServeSettings, binding: Binding, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT has been heard and requests have ended; a second one ends them.

    Raises ConfigError where the address is taken, and what `make` raises.
    """
    with closing(_bind(binding)) as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(make, settings, binding, listener, announce))


async def _serve(
    make: Make, settings: ServeSettings, binding: Binding, listener: socket.socket, announce: Announce
) -> None:
    async with Keeper(make) as keeper:
        app = create_app(keeper, settings)
        export_on_port(app.state.metrics, binding.metrics_port)
        server = _Server(_config(app, binding))
        listener.listen(BACKLOG)
        announce(keeper.llm.plan, listener.getsockname()[1])
        await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends at a signal without passing it on: the engine is still to be ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:
            LOG.warning("stopping at once")
            self.force_exit = True
        else:
            LOG.info("draining: requests end, no new ones are taken; a second signal stops at once")
            self.should_exit = True


def _config(app: Any, binding: Binding) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(binding.drain_s)),
        ssl_certfile=binding.certificate,
        ssl_keyfile=binding.key,
    )


def _bind(binding: Binding) -> socket.socket:
    try:
        found = socket.getaddrinfo(binding.host, binding.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        return _bound(socket.socket(family, kind, protocol), address)
    except OSError as error:
        where = f"{binding.host}:{binding.port}"
        raise ConfigError(
            f"{where} cannot be listened on ({error}): choose another --port or --host"
        ) from error


def _bound(listener: socket.socket, address: Any) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener

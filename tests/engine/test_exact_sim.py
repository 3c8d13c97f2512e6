"""The whole engine on a simulated device: copies land late and in any order, some fail, and no byte is used early."""

from pathlib import Path

import pytest
import torch
from fixtures_engine import Lasting, Said, prompt, running, speak, tiny_model, used_slots
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenvm.clock import FakeClock
from tokenvm.engine.engine import Engine
from tokenvm.engine.rescue import PATIENCE_S
from tokenvm.errors import StorageError
from tokenvm.memory.backend import Kind
from tokenvm.memory.sim import SimCopy, SimDevice

PROMPTS = [prompt(70), prompt(33), prompt(50)]
TOKENS = 12


def roomy(dtype: torch.dtype = torch.bfloat16) -> list[Said]:
    with running(tiny_model(dtype), Path("unused")) as engine:
        return speak(engine, PROMPTS, TOKENS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("device_pages", [3, 5])
def test_copies_that_land_in_any_order_give_the_same_bits(
    device_pages: int, seed: int, tmp_path: Path
) -> None:
    device = SimDevice(seed)
    with running(tiny_model(), tmp_path, device_pages=device_pages, backend=device) as engine:
        said = speak(engine, PROMPTS, TOKENS)
        assert engine.stats()["streamed_pages"] > 0
        assert engine.stats()["moved_bytes"]["nvme_read"] > 0
    assert device.counters.out_of_order > 0
    assert said == roomy()


def test_host_and_disk_on_a_simulated_device(tmp_path: Path) -> None:
    device = SimDevice(7)
    with running(tiny_model(), tmp_path, device_pages=4, host_pages=3, backend=device) as engine:
        said = speak(engine, PROMPTS, TOKENS)
        moved = engine.stats()["moved_bytes"]
    assert min(moved[name] for name in ("nvme_read", "nvme_write", "h2d", "d2h")) > 0
    assert said == roomy()


@pytest.mark.parametrize(
    "reads", [{"prefetch_strategy": "none"}, {"prefetch_ahead": 1}], ids=["none", "one layer"]
)
def test_reading_ahead_less_on_a_simulated_device(reads: dict[str, object], tmp_path: Path) -> None:
    with running(tiny_model(), tmp_path, device_pages=4, backend=SimDevice(3), **reads) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert engine.stats()["streamed_pages"] > 0


class Every:
    """Is true for every n-th copy of a kind."""

    def __init__(self, n: int, kind: Kind) -> None:
        self._n, self._kind, self.count = n, kind, 0
        self.hits = 0

    def __call__(self, copy: SimCopy) -> bool:
        if copy.kind is not self._kind:
            return False
        self.count += 1
        failed = self.count % self._n == 0
        self.hits += failed
        return failed


@pytest.mark.parametrize("seed", range(3))
def test_reads_that_fail_now_and_then(seed: int, tmp_path: Path) -> None:
    device, failing = SimDevice(seed), Every(97, Kind.READ)
    device.fail_when(Lasting(failing))
    with running(tiny_model(), tmp_path, device_pages=5, backend=device) as engine:
        said = speak(engine, PROMPTS, TOKENS)
        assert engine.account.lost_pages > 0
    assert failing.hits > 0
    assert said == roomy()


@pytest.mark.parametrize("seed", range(3))
def test_writes_that_fail_now_and_then(seed: int, tmp_path: Path) -> None:
    """A page that could not be written stays on the device, and is written again before it leaves."""
    device, failing = SimDevice(seed), Every(11, Kind.WRITE)
    device.fail_when(Lasting(failing))
    with running(tiny_model(), tmp_path, device_pages=5, backend=device) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert engine.account.lost_pages == 0
    assert failing.hits > 0


@pytest.mark.parametrize("kind", [Kind.COPY_IN, Kind.COPY_OUT])
def test_host_copies_that_fail_now_and_then(kind: Kind, tmp_path: Path) -> None:
    device, failing = SimDevice(5), Every(13, kind)
    device.fail_when(Lasting(failing))
    with running(
        tiny_model(), tmp_path, device_pages=5, host_pages=64, disk_pages=0, backend=device
    ) as engine:
        assert speak(engine, PROMPTS, TOKENS) == roomy()
    assert failing.hits > 0


def test_a_disk_that_refuses_all_writes_is_an_error_and_then_works_again(tmp_path: Path) -> None:
    """Requests that need the disk wait for it, then fail by name; once it is tried again they are served."""
    device, clock, broken = SimDevice(0), FakeClock(), [True]
    device.fail_when(lambda copy: broken[0] and copy.kind is Kind.WRITE)
    with running(tiny_model(), tmp_path, device_pages=4, backend=device, clock=clock) as engine:
        with pytest.raises(StorageError, match="check the disk below nvme_path"):
            speak(engine, PROMPTS, TOKENS)
        assert clock.now_s() > PATIENCE_S
        assert engine.stats()["tiers"]["disk"]["condition"] == "off"
        abort_all(engine)
        broken[0] = False
        assert speak(engine, PROMPTS, TOKENS) == roomy()
        assert engine.stats()["tiers"]["disk"]["condition"] == "on"
        assert used_slots(engine) == [0, 0, 0]


def abort_all(engine: Engine) -> None:
    for at in range(len(PROMPTS)):
        engine.abort(f"prompt-{at}")
    assert not engine.has_work


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    device_pages=st.integers(3, 6),
    host_pages=st.sampled_from([0, 0, 4]),
    chunk=st.integers(16, 50),
    every_steps=st.integers(0, 5),
    fail_every=st.sampled_from([0, 499]),
    seed=st.integers(0, 1000),
)
def test_any_life_on_a_simulated_device(
    lengths: list[int],
    device_pages: int,
    host_pages: int,
    chunk: int,
    every_steps: int,
    fail_every: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, model = tmp_path_factory.getbasetemp(), tiny_model()
    prompts = [prompt(length, seed=seed) for length in lengths]
    device = SimDevice(seed)
    if fail_every:
        device.fail_when(Lasting(Every(fail_every, Kind.READ)))
        device.fail_when(Lasting(Every(fail_every, Kind.COPY_IN)))
    limits = {"device_pages": device_pages, "host_pages": host_pages, "max_tokens_per_forward": chunk}
    with running(model, folder, backend=device, **limits) as engine:
        limited = speak(engine, prompts, TOKENS, every_steps=every_steps)
    with running(model, folder, max_tokens_per_forward=512) as engine:
        assert limited == speak(engine, prompts, TOKENS)

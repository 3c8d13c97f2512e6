"""What a patched model refuses: what would not be paged, would be wrong, or comes after its end."""

from __future__ import annotations

import threading

import architectures
import pytest
import torch

from tokenvm.bridges.patch import disable_paging, enable_paging
from tokenvm.config import MemoryConfig
from tokenvm.errors import ConfigError, LimitTooSmall, RequestError
from tokenvm.vocab import Tier

GREEDY = {"max_new_tokens": 8, "do_sample": False}


def prompt(rows, tokens, seed=1):
    return torch.randint(3, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def llama(**changes):
    return architectures.model("Llama", **changes)


def longrope(original):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    ends = {"rope_theta": 10000.0, "original_max_position_embeddings": original}
    return {"rope_parameters": {"rope_type": "longrope", "factor": 4.0, **factors, **ends}}


def test_a_model_that_drops_its_cache_is_refused_where_it_does(page):
    model = page(architectures.model("Phi-3", original_max_position_embeddings=16), 4)
    assert model.generate(prompt(1, 6), **GREEDY).shape == (1, 14)
    for tokens in (12, 20):
        with pytest.raises(RequestError, match="phi3 drops its cache"):
            model.generate(prompt(1, tokens), **GREEDY)
    assert model.generate(prompt(1, 20), use_cache=False, **GREEDY).shape == (1, 28)


def test_a_pass_whose_rope_depends_on_its_length_is_not_cut(page):
    """The limit that is named is enough."""
    model, changes, ids = llama(**longrope(60)), longrope(60), prompt(1, 70)
    page(model, 4)
    with torch.no_grad():
        want = llama(**changes)(ids).logits
        with pytest.raises(LimitTooSmall, match="type kv_limit=") as refused:
            model(ids, past_key_values=model.tokenvm.new_cache())
        model(ids[:, :55], past_key_values=model.tokenvm.new_cache())  # in chunks below the length
        disable_paging(model)
        page(model, 0, kv_limit=refused.value.minimum_bytes)
        found = model(ids, past_key_values=model.tokenvm.new_cache()).logits
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("attention", ["auto", "gather"])
def test_a_cache_of_a_former_turn_is_refused(attention, page):
    model = page(llama(), 4, attention=attention)
    cache = model.tokenvm.new_cache()
    with torch.no_grad():
        model(prompt(1, 20), past_key_values=cache)
        disable_paging(model)
        page(model, 6, attention=attention)
        with pytest.raises(RequestError, match="pages of this cache are gone"):
            model(prompt(1, 3), past_key_values=cache)
    for change in (lambda: cache.crop(-1), lambda: cache.batch_repeat_interleave(2)):
        with pytest.raises(RequestError, match="pages of this cache are gone"):
            change()
    cache.close()


def test_decoder_and_encoder_share_vram_limit(disk_path):
    model = architectures.model("flan-T5")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    limit = weights + 200_000
    memory = {"block_tokens": 16, "nvme_path": disk_path, "nvme_limit": "64MB"}
    enable_paging(model, MemoryConfig(vram_limit=limit, **memory))
    taken = 0
    for store in model.tokenvm._stores:
        ring = store.vm.ring.slots * store.vm.ring.stride
        taken += store.vm.ledger.capacity(Tier.DEVICE) * store.vm.layout.page_bytes + ring
    disable_paging(model)
    assert 100_000 < taken <= limit - weights
    with pytest.raises(LimitTooSmall, match="decoder and encoder") as refused:
        enable_paging(model, MemoryConfig(vram_limit=weights + 100, **memory))
    enable_paging(model, MemoryConfig(vram_limit=refused.value.minimum_bytes, **memory))
    disable_paging(model)


def test_what_others_set_on_the_model_is_theirs(page):
    """As hooks do: what was there comes back, and what came later stays."""
    model, calls = llama(), []
    plain = model.forward

    def hooked(*args, **kwargs):
        calls.append(1)
        return plain(*args, **kwargs)

    model.forward = hooked
    page(model, 4)
    model.generate(prompt(1, 20), **GREEDY)
    disable_paging(model)
    assert model.__dict__["forward"] is hooked
    assert {"generate", "prepare_inputs_for_generation", "tokenvm"}.isdisjoint(model.__dict__)
    page(model, 4)
    ours = model.forward
    model.forward = later = lambda *args, **kwargs: ours(*args, **kwargs)
    disable_paging(model)
    assert model.forward is later
    want = llama().generate(prompt(1, 20), **GREEDY)
    assert model.generate(prompt(1, 20), **GREEDY).tolist() == want.tolist()
    assert calls


def test_threads_take_turns(page):
    """The second waits for the first, which waits in the middle until the second has begun."""
    model, fresh = page(llama(), 4), llama()
    want = [fresh.generate(prompt(1, 40, seed=seed), **GREEDY).tolist() for seed in (1, 2)]
    found, began, plain = [None, None], threading.Event(), model.model.layers[1].forward

    def slow(*args, **kwargs):
        began.wait(0.5)
        return plain(*args, **kwargs)

    model.model.layers[1].forward = slow

    def say(index):
        if index:
            began.set()
        found[index] = model.generate(prompt(1, 40, seed=index + 1), **GREEDY).tolist()

    threads = [threading.Thread(target=say, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == want


def test_settings_of_an_engine_are_refused(disk_path):
    memory = MemoryConfig(nvme_path=disk_path, nvme_read_only=True)
    with pytest.raises(ConfigError, match="nvme_read_only works in LLM"):
        enable_paging(llama(), memory)


def test_pages_are_read_as_far_ahead_as_it_is_said(page, monkeypatch):
    model = page(llama(), 4, prefetch_ahead=1)
    assert model.tokenvm.store.kv._stream._ahead == 1

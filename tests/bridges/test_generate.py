"""`generate` in all its modes, over pages: as without them."""

from __future__ import annotations

import copy

import architectures
import numpy as np
import pytest
import torch
import transformers

from tokenvm.bridges import kv_step
from tokenvm.bridges.patch import disable_paging, enable_paging, patch_model_attention
from tokenvm.config import MemoryConfig
from tokenvm.errors import ConfigError, LimitTooSmall, ModelError, RequestError, StorageError
from tokenvm.memory.backend import Status
from tokenvm.vocab import Answer

GREEDY = {"max_new_tokens": 12, "do_sample": False}


def prompt(rows, tokens, seed=1):
    return torch.randint(3, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def llama(**changes):
    return architectures.model("Llama", **changes)


@pytest.mark.parametrize("attention", ["auto", "gather"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_p": 0.9, "temperature": 1.5, "num_return_sequences": 2},
        {"do_sample": False, "prompt_lookup_num_tokens": 5},
        {"do_sample": False, "prefill_chunk_size": 7},
        {"do_sample": True, "num_beams": 2, "top_k": 20},
    ],
    ids=["samples", "assisted", "chunked", "beam samples"],
)
def test_every_mode_gives_the_same_tokens(options, attention, page):
    model, fresh = page(llama(), 6, attention=attention), llama()
    ids = torch.cat([prompt(1, 20), prompt(1, 20), prompt(1, 20)], dim=1)  # so that a look-up finds something
    answers = []
    for one in (fresh, model):
        torch.manual_seed(7)
        answers.append(one.generate(ids, max_new_tokens=24, **options).tolist())
    assert answers[1] == answers[0]
    assert model.tokenvm.path == ("kernel" if attention == "auto" else "gather")
    assert model.tokenvm.stats()["streamed_pages"] > 0


def test_an_assistant_is_paged_too(page):
    fresh, guess = llama(), llama(num_hidden_layers=1)
    want = fresh.generate(prompt(1, 40), assistant_model=copy.deepcopy(guess), **GREEDY)
    model, assistant = page(llama(), 3), page(guess, 3)
    assert model.generate(prompt(1, 40), assistant_model=assistant, **GREEDY).tolist() == want.tolist()
    assert assistant.tokenvm.stats()["steps"] > 0
    assert model.tokenvm.stats()["streamed_pages"] > 0


def test_keys_and_values_are_written_once_and_read_in_place(page, monkeypatch):
    """Attention is given the very addresses that were appended to, inside the device's arena."""
    written, read = [], []
    append, attend = kv_step.rope_append, kv_step.attend

    def appending(qkv, angles, positions, parts, *rest):
        written.extend(parts.tolist())
        return append(qkv, angles, positions, parts, *rest)

    def attending(state, q, positions, segments, first_page, parts, *rest):
        read.extend(parts.tolist())
        return attend(state, q, positions, segments, first_page, parts, *rest)

    monkeypatch.setattr(kv_step, "rope_append", appending)
    monkeypatch.setattr(kv_step, "attend", attending)
    model = page(llama(), 8)
    model.generate(prompt(1, 40), **GREEDY)
    assert len(written) == 2 * (40 + GREEDY["max_new_tokens"] - 1)  # every token once in both layers
    assert set(read) == set(written)
    arena = model.tokenvm.store.vm.arena
    end = arena.base + arena.capacity * arena.layout.page_bytes
    assert all(arena.base <= address < end for address in read)
    assert model.tokenvm.stats()["streamed_pages"] == 0


def test_pages_may_lie_in_host_memory(page):
    model = page(llama(), 3, host_memory="1MB", nvme_limit=0)
    assert (
        model.generate(prompt(1, 60), **GREEDY).tolist() == llama().generate(prompt(1, 60), **GREEDY).tolist()
    )
    moved = model.tokenvm.stats()["moved_bytes"]
    assert moved["h2d"] > 0
    assert moved["nvme_read"] == 0


def test_the_next_turn_goes_on_from_the_cache_of_the_last(page):
    model, fresh = page(llama(), 4), llama()
    answers = []
    for one in (fresh, model):
        first = one.generate(prompt(1, 50), return_dict_in_generate=True, **GREEDY)
        ids = torch.cat([first.sequences, prompt(1, 9, seed=2)], dim=1)
        answers.append(one.generate(ids, past_key_values=first.past_key_values, **GREEDY).tolist())
    assert answers[1] == answers[0]
    assert first.past_key_values.get_seq_length() == 50 + 12 + 9 + 12 - 1
    first.past_key_values.close()
    model.tokenvm.store.vm.finish_transfers()
    assert model.tokenvm.stats()["tiers"]["device"]["used_bytes"] == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_kept(side, page):
    """Of a padded batch only tokens take room, wherever the padding stands."""
    ids, mask = prompt(2, 40), torch.ones(2, 40, dtype=torch.int64)
    mask[0, : 30 if side == "left" else 40], mask[0, 10 if side == "right" else 40 :] = (
        (0, 1) if side == "left" else (1, 0)
    )
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model = page(llama(), 8)
    cache = model.tokenvm.new_cache()
    with torch.no_grad():
        got = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        want = llama()(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(got[mask == 1], want[mask == 1], rtol=1e-3, atol=1e-3)
    assert [model.tokenvm.store.kv.length_tokens(seq) for seq in cache.rows.seqs] == [10, 40]
    cache.close()


def test_disabling_gives_the_model_back(page):
    model = llama()
    before = model.config._attn_implementation
    page(model, 3)
    assert disable_paging(model) is model
    assert model.config._attn_implementation == before
    assert not hasattr(model, "tokenvm")
    assert (
        model.generate(prompt(1, 20), **GREEDY).tolist() == llama().generate(prompt(1, 20), **GREEDY).tolist()
    )
    disable_paging(model)
    page(model, 3)


def test_without_a_cache_a_patched_model_is_the_model(page):
    """Training and plain forward passes do not touch pages."""
    model, fresh = page(llama(), 3), llama()
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :4] = 0
    for one in (model, fresh):
        one(prompt(2, 12), attention_mask=mask, labels=prompt(2, 12), use_cache=False).loss.backward()
    for mine, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert model.tokenvm.stats()["steps"] == 0


def test_a_model_that_does_not_say_whether_it_caches_is_paged(page):
    """As converted folders without a generation_config.json."""
    model = page(llama(), 3)
    model.generation_config.use_cache = None
    model.generate(prompt(1, 30), **GREEDY)
    steps = model.tokenvm.stats()["steps"]
    assert steps >= GREEDY["max_new_tokens"]
    model.generate(prompt(1, 4), use_cache=False, **GREEDY)
    assert model.tokenvm.stats()["steps"] == steps


def test_a_gradient_over_pages_is_refused(page):
    model = page(llama(), 3)
    with pytest.raises(RequestError, match="no_grad"):
        model(prompt(1, 4), past_key_values=model.tokenvm.new_cache())


def test_a_mask_that_the_kernel_does_not_know_is_refused(page):
    model = page(llama(), 4)
    mask = torch.zeros(1, 1, 6, 6)
    with torch.no_grad(), pytest.raises(RequestError, match="gather"):
        model(prompt(1, 6), attention_mask=mask, past_key_values=model.tokenvm.new_cache())


def test_a_pass_that_failed_leaves_nothing_behind(page, monkeypatch):
    model = page(llama(), 3)
    cache = model.tokenvm.new_cache()
    with torch.no_grad():
        model(prompt(1, 20), past_key_values=cache)
        broken = monkeypatch.context()
        with broken as patch:
            patch.setattr(model.model.layers[1], "forward", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(prompt(1, 9, seed=3), past_key_values=cache)
        with pytest.raises(RequestError, match=r"crop\(0\)"):
            model(prompt(1, 9, seed=4), past_key_values=cache)
        cache.crop(0)
        got = model(prompt(1, 9, seed=4), past_key_values=cache).logits
    want = llama()(torch.cat([prompt(1, 20), prompt(1, 9, seed=4)], dim=1)).logits[:, -9:]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    cache.close()
    model.tokenvm.store.kv.check()


def test_a_long_pass_is_computed_in_chunks(page):
    """Also where nobody asked for chunks, with all logits or some."""
    model, ids = page(llama(), 4), prompt(2, 70)
    mask = torch.ones_like(ids)
    mask[0, :50] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        want = llama()(ids, attention_mask=mask, position_ids=positions).logits
        for keep in (0, 1, 40):
            cache = model.tokenvm.new_cache()
            found = model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=keep
            )
            columns = mask[:, -keep:] == 1
            assert found.logits.shape[1] == keep or 70
            torch.testing.assert_close(found.logits[columns], want[:, -keep:][columns], rtol=1e-3, atol=1e-3)
            cache.close()
    assert model.tokenvm.stats()["steps"] > 3


def test_more_rows_than_the_device_has_pages_are_refused_with_the_way_out(page):
    model = page(llama(), 4)
    with pytest.raises(LimitTooSmall, match="type kv_limit="):
        model.generate(prompt(9, 20), **GREEDY)


def test_a_damaged_page_is_an_error_and_never_a_token(page, monkeypatch):
    model = page(llama(), 3)
    ring = type(model.tokenvm.store.vm.ring)
    wait = ring.wait
    monkeypatch.setattr(ring, "wait", lambda self, end: (wait(self, end), Answer.MISS)[1])
    monkeypatch.setattr(ring, "failed", lambda self, begin, end: np.array([begin], np.uint64))
    monkeypatch.setattr(ring, "statuses", lambda self, begin, end: np.array([Status.DAMAGED], np.uint8))
    vm = type(model.tokenvm.store.vm)
    monkeypatch.setattr(vm, "read_again", lambda self, rows, addresses: np.zeros(len(addresses), np.bool_))
    with pytest.raises(StorageError, match="damaged"):
        model.generate(prompt(1, 70), **GREEDY)


def test_what_cannot_be_paged_is_refused_by_name():
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    with pytest.raises(ModelError, match="mamba"):
        patch_model_attention(mamba)
    with pytest.raises(ModelError, match="float16"):
        patch_model_attention(llama().half())
    with pytest.raises(ConfigError, match="Linear is no model"):
        patch_model_attention(torch.nn.Linear(2, 2))


def test_what_does_not_fit_together_is_refused(page):
    model = page(llama(), 3)
    with pytest.raises(ConfigError, match="already"):
        patch_model_attention(model)
    with pytest.raises(ConfigError, match="cache_implementation"):
        model.generate(prompt(1, 4), cache_implementation="static")
    with pytest.raises(copy.Error, match="disable_paging"):
        copy.deepcopy(model)
    with pytest.raises(ConfigError, match="kv_cache_dtype"):
        enable_paging(llama(), MemoryConfig(kv_cache_dtype="int8"))
    with pytest.raises(ConfigError, match="attention="):
        enable_paging(llama(), attention="none")


def test_the_example_of_the_documents(disk_path):
    """The snippet as it was promised."""
    model, input_ids = llama(max_position_embeddings=4096), prompt(1, 30)
    patch_model_attention(model, block_tokens=128)
    out = model.generate(input_ids, max_length=90, do_sample=False)
    assert (
        out.tolist()
        == llama(max_position_embeddings=4096).generate(input_ids, max_length=90, do_sample=False).tolist()
    )
    assert model.tokenvm.store.geometry.block_tokens == 128
    disable_paging(model)

import pytest

from tokenvm.config import MemoryConfig
from tokenvm.engine.budget import MAX_RING_BYTES, MIN_RING_PARTS, Needs, minimum_kv_bytes, plan_budget
from tokenvm.errors import LimitTooSmall
from tokenvm.memory.layout import HUGE_BYTES

NEEDS = Needs(
    page_bytes=30 * 4096, part_bytes=4096, weight_bytes=1 << 20, workspace_bytes=1 << 19, wanted_pages=64
)
FREE, DISK = 1 << 34, 1 << 36


def test_pages_and_ring_stay_within_the_limit():
    for limit in range(minimum_kv_bytes(NEEDS), 80 * NEEDS.page_bytes, 50_021):
        budget = plan_budget(MemoryConfig(kv_limit=limit), NEEDS, FREE, DISK)
        used = budget.device_slots * NEEDS.page_bytes + budget.ring_slots * NEEDS.part_bytes
        assert used <= limit
        assert budget.device_slots >= 2
        assert budget.ring_slots >= MIN_RING_PARTS


def test_a_ring_fills_its_huge_pages():
    for limit in range(1 << 20, 64 << 20, 777_777):
        ring_bytes = (
            plan_budget(MemoryConfig(kv_limit=limit), NEEDS, FREE, DISK).ring_slots * NEEDS.part_bytes
        )
        assert ring_bytes < HUGE_BYTES or -ring_bytes % HUGE_BYTES < NEEDS.part_bytes


def test_the_smallest_legal_limit_is_accepted_and_one_byte_less_is_refused_by_name():
    smallest = minimum_kv_bytes(NEEDS)
    assert plan_budget(MemoryConfig(kv_limit=smallest), NEEDS, FREE, DISK).device_slots == 2
    with pytest.raises(LimitTooSmall, match=rf"kv_limit .* at least {smallest} bytes") as caught:
        plan_budget(MemoryConfig(kv_limit=smallest - 1), NEEDS, FREE, DISK)
    assert caught.value.minimum_bytes == smallest


def test_vram_limit_bounds_weights_workspace_pages_and_ring_together():
    fixed = NEEDS.weight_bytes + NEEDS.workspace_bytes
    smallest = fixed + minimum_kv_bytes(NEEDS)
    budget = plan_budget(MemoryConfig(vram_limit=smallest + 3 * NEEDS.page_bytes), NEEDS, FREE, DISK)
    assert fixed + budget.kv_bytes == smallest + 3 * NEEDS.page_bytes
    with pytest.raises(LimitTooSmall, match="vram_limit"):
        plan_budget(MemoryConfig(vram_limit=smallest - 1), NEEDS, FREE, DISK)


def test_without_limits_every_wanted_page_fits_and_no_more_is_taken():
    budget = plan_budget(MemoryConfig(), NEEDS, FREE, DISK)
    assert budget.device_slots == NEEDS.wanted_pages
    assert budget.ring_slots * NEEDS.part_bytes <= MAX_RING_BYTES
    assert budget.disk_bytes == DISK // 2


def test_without_lower_tiers_there_is_no_ring():
    budget = plan_budget(MemoryConfig(nvme_limit=0, host_memory=0), NEEDS, FREE, DISK)
    assert not budget.spills
    assert budget.ring_slots == 0


def test_a_budget_in_tokens_gives_exactly_their_pages_and_a_ring_beside_them():
    for tokens in range(2 * 16, 64 * 16 + 1, 7):
        pages = -(-tokens // 16)
        config = MemoryConfig(kv_cache_num_tokens=tokens)
        budget = plan_budget(config, NEEDS, FREE, DISK)
        assert budget.device_slots == pages
        assert budget.ring_slots >= MIN_RING_PARTS
        assert pages * NEEDS.page_bytes + budget.ring_slots * NEEDS.part_bytes <= budget.kv_bytes
        alone = plan_budget(config.model_copy(update={"nvme_limit": 0}), NEEDS, FREE, DISK)
        assert (alone.device_slots, alone.ring_slots) == (pages, 0)


def test_a_budget_in_tokens_stays_within_what_is_wanted_and_what_vram_limit_leaves():
    assert plan_budget(MemoryConfig(kv_cache_num_tokens=10**6), NEEDS, FREE, DISK).device_slots == 64
    fixed = NEEDS.weight_bytes + NEEDS.workspace_bytes
    vram = fixed + minimum_kv_bytes(NEEDS) + 3 * NEEDS.page_bytes
    budget = plan_budget(MemoryConfig(kv_cache_num_tokens=60 * 16, vram_limit=vram), NEEDS, FREE, DISK)
    assert budget.kv_bytes == vram - fixed
    assert budget.device_slots < 60


def test_too_few_tokens_are_refused_with_the_number_that_works():
    with pytest.raises(LimitTooSmall, match="kv_cache_num_tokens=32 or more") as caught:
        plan_budget(MemoryConfig(kv_cache_num_tokens=16), NEEDS, FREE, DISK)
    assert caught.value.minimum_bytes == minimum_kv_bytes(NEEDS)
    assert plan_budget(MemoryConfig(kv_cache_num_tokens=32), NEEDS, FREE, DISK).device_slots == 2

"""Who is blamed for a copy that failed."""

from __future__ import annotations

from tokenvm.clock import FakeClock
from tokenvm.memory.sim import SimDevice
from tokenvm.residency.health import IN_A_ROW
from tokenvm.residency.ledger import Ledger
from tokenvm.vocab import Tier
from tokenvm.watch import Watch


def test_a_copy_from_host_to_disk_that_fails_is_a_write_to_disk() -> None:
    ledger = Ledger({Tier.HOST: 2, Tier.DISK: 40})
    watch = Watch(SimDevice(1), ledger, {}, FakeClock())
    unit = ledger.create(Tier.HOST)
    ledger.seal(unit)
    for _ in range(IN_A_ROW):
        move = ledger.begin(unit, Tier.HOST, Tier.DISK)
        ledger.fail(move)
        watch.moved(move, failed=True)
    assert [watch.as_dict(tier)["condition"] for tier in (Tier.HOST, Tier.DISK)] == ["on", "off"]
    assert watch.as_dict(Tier.DISK)["retired_slots"] == 2
    assert watch.tick() == [], "what lies on disk can be read"

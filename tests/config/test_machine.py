"""What the machine has to spare, read from made-up proc and sys files."""

from pathlib import Path

import pytest

from tokenvm.machine import free_disk_bytes, free_memory_bytes, usable_cores

MEMINFO = "MemTotal:  8000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(place: str, limit: str, usage: str, reclaimable: int = 0) -> dict[str, str]:
    """A version 2 control group."""
    folder = f"sys/fs/cgroup/{place}".rstrip("/")
    return {
        f"{folder}/memory.max": limit + "\n",
        f"{folder}/memory.current": usage + "\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {reclaimable}\n",
    }


def test_without_a_limit_what_is_available_counts(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"} | group("", "max", "1000")
    assert free_memory_bytes(machine(tmp_path, files)) == 4000 * 1024


def test_a_control_group_leaves_limit_less_usage_plus_reclaimable(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n"} | group("a/b", "100000", "60000", 5000)
    assert free_memory_bytes(machine(tmp_path, files)) == 45000


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a/b\n"}
    files |= group("a/b", "100000", "0") | group("a", "50000", "30000") | group("", "max", "0")
    assert free_memory_bytes(machine(tmp_path, files)) == 20000


def test_a_container_that_sees_only_the_top_group_finds_its_limit(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/docker/abc\n"} | group("", "90000", "40000")
    assert free_memory_bytes(machine(tmp_path, files)) == 50000


def test_version_1_groups_are_read(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/job"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/job\n",
        f"{folder}/memory.limit_in_bytes": "80000\n",
        f"{folder}/memory.usage_in_bytes": "30000\n",
        f"{folder}/memory.stat": "total_inactive_file 1000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert free_memory_bytes(machine(tmp_path, files)) == 51000


def test_an_overdrawn_group_leaves_nothing(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"} | group("", "100", "200")
    assert free_memory_bytes(machine(tmp_path, files)) == 0


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/meminfo": "nonsense"},
        {"proc/meminfo": "MemAvailable: x kB\n", "proc/self/cgroup": "\n::\n0\n"},
    ],
    ids=["nothing", "nonsense", "no numbers"],
)
def test_unreadable_files_mean_zero_and_never_raise(files: dict[str, str], tmp_path: Path) -> None:
    assert free_memory_bytes(machine(tmp_path, files)) == 0


def test_this_machine_has_memory_disk_and_cores(tmp_path: Path) -> None:
    assert free_memory_bytes() > 0
    assert free_disk_bytes(tmp_path / "not" / "there") > 0
    assert usable_cores() >= 1

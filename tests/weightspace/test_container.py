"""Cores and memory of a process in a container, read off control groups as the kernel writes them."""

import os

import pytest

from weightspace import container

# Path below the root -> what the file says, cores out of 8, and memory.
V2 = {"proc/self/cgroup": "0::/\n"}
INNER = {"proc/self/cgroup": "0::/user.slice/job\n"}
PERIOD = {"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
V1 = {"proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x\n0::/\n"}
CASES = {
    "nothing": ({}, 8),
    "no limit": (V2 | {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
    "two cores": (V2 | {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "one and a half": (V2 | {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    "half a core": (V2 | {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "more than there are": (V2 | {"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
    "a group above": (INNER | {"sys/fs/cgroup/user.slice/cpu.max": "300000 100000"}, 3),
    "the least of several": (
        INNER | {"sys/fs/cgroup/user.slice/cpu.max": "300000 100000", "sys/fs/cgroup/cpu.max": "90000 100000"},
        1,
    ),
    "version 1": (V1 | PERIOD | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000"}, 4),
    "version 1, no limit": (V1 | PERIOD | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, 8),
    "nonsense": ({"proc/self/cgroup": "x\n0::/../../..\n::\n", "sys/fs/cgroup/cpu.max": "a b c"}, 8),
    "division by nothing": (V2 | {"sys/fs/cgroup/cpu.max": "5 0\n"}, 8),
}  # fmt: skip


def written(files, root):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(("files", "cores"), CASES.values(), ids=CASES)
def test_a_quota_of_the_container_bounds_the_cores(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    assert container.num_cores(written(files, tmp_path)) == cores


def test_the_cores_a_process_may_run_on_bound_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert container.num_cores(written(V2 | {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, tmp_path)) == 1


def test_a_limit_of_the_container_bounds_the_memory(tmp_path):
    whole = container.memory(tmp_path)
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert container.memory(written(V2 | {"sys/fs/cgroup/memory.max": "1000000\n"}, tmp_path / "v2")) == 1_000_000
    assert container.memory(written(V2 | {"sys/fs/cgroup/memory.max": "max\n"}, tmp_path / "max")) == whole
    v1 = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n"}
    assert container.memory(written(V1 | v1, tmp_path / "v1")) == 2_000_000

from pathlib import Path

import pytest
import torch

from snpdeconv import device
from snpdeconv.device import (
    Allocations,
    PeakMemory,
    available_bytes,
    control_group_bytes,
    release_memory,
    used_bytes,
)

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize("can_reset", [True, False])
def test_the_peak_is_of_what_was_held_within_the_block(monkeypatch, can_reset):
    if not can_reset:  # as on systems without /proc
        monkeypatch.setattr(device, "_CLEAR_REFS", Path("/nowhere/clear_refs"))
    torch.ones(100 * MIB // 4)  # before the block
    release_memory()
    with PeakMemory(CPU) as memory:
        quiet = memory.growth_bytes()
        held = torch.ones(40 * MIB // 4)
        for _ in range(20):  # long enough for a sampler to look
            held += 1
        del held
    assert quiet < 20 * MIB
    assert 35 * MIB < memory.growth_bytes() < 60 * MIB
    assert memory.peak_bytes() > 35 * MIB
    assert used_bytes(CPU) > 30 * MIB


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_tightest_control_group_above_counts_in_version_2(tmp_path):
    write(tmp_path / "proc/self", cgroup="0::/slurm/job_7/step_0\n")
    base = tmp_path / "sys/fs/cgroup"
    write(base / "slurm", memory__max="max\n", memory__current="900\n", memory__stat="anon 1\n")
    write(
        base / "slurm/job_7",
        memory__max="1000\n",
        memory__current="700\n",
        memory__stat="anon 500\ninactive_file 150\n",
    )
    write(
        base / "slurm/job_7/step_0", memory__max="5000\n", memory__current="700\n", memory__stat="anon 500\n"
    )
    assert control_group_bytes(tmp_path) == 1000 - 700 + 150


def test_control_groups_of_version_1_and_none(tmp_path):
    assert control_group_bytes(tmp_path) == 2**63
    write(tmp_path / "proc/self", cgroup="9:cpu:/x\n4:memory:/docker/ab\n0::/\n")
    assert control_group_bytes(tmp_path) == 2**63
    write(
        tmp_path / "sys/fs/cgroup/memory/docker/ab",
        memory__limit_in_bytes="400\n",
        memory__usage_in_bytes="500\n",
        memory__stat="total_inactive_file 20\n",
    )
    assert control_group_bytes(tmp_path) == 0


def test_available_memory_is_within_the_machine_and_the_group(monkeypatch):
    assert 0 < available_bytes(CPU) < 2**50
    monkeypatch.setattr(device, "control_group_bytes", lambda: 12345)
    assert available_bytes(CPU) == 12345


def test_allocations_are_told_by_phase():
    before = torch.ones(MIB // 4)
    with Allocations(CPU) as step:
        first = torch.ones(3 * MIB // 4)
        second = torch.ones(2 * MIB // 4)
        del second, before
        step.end_phase()
        third = torch.ones(MIB // 4)
        step.end_phase()
        del first, third
        step.end_phase()
    # What was held before does not count; what a phase leaves does in the next.
    assert step.peak_bytes == [5 * MIB, 4 * MIB, 4 * MIB]

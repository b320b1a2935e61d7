from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.training.data import (
    Batch,
    PackedLoader,
    as_batch,
    derived_seed,
    epoch_batches,
    num_batches,
    seed_epoch,
    windows,
)


def packed_cohort(num_samples):
    # Each row names itself, so that a batch says which rows it holds.
    numbers = torch.arange(num_samples)
    packed = torch.stack([numbers % 256, numbers // 256], dim=1).to(torch.uint8)
    return packed, numbers.float(), torch.stack([numbers, -numbers], dim=1).float()


def row_numbers(batch):
    low, high = batch.genotypes.long().unbind(1)
    return (low + 256 * high).tolist()


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_ranks_share_the_global_batches_of_one_rank(num_samples, batch_size, world_size, epoch, shuffle):
    packed, target, covariates = packed_cohort(num_samples)

    def batches(rank, world):
        loader = PackedLoader(
            packed,
            target,
            covariates,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=5,
            rank=rank,
            world_size=world,
        )
        loader.set_epoch(epoch)
        assert len(loader) == len(list(loader))
        return list(loader)

    alone = [row_numbers(batch) for batch in batches(0, 1)]
    shares = [[row_numbers(batch) for batch in batches(rank, world_size)] for rank in range(world_size)]
    joined = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert joined == alone
    assert sorted(chain(*alone)) == list(range(num_samples))


def test_a_batch_keeps_genotypes_targets_and_covariates_of_a_sample_together():
    packed, target, covariates = packed_cohort(600)
    rows = torch.arange(599, 300, -2)
    loader = PackedLoader(packed, target, covariates, rows=rows, batch_size=64, shuffle=True, seed=1)
    seen = []
    for batch in loader:
        numbers = row_numbers(batch)
        assert batch.target.tolist() == numbers
        assert batch.covariates.tolist() == [[n, -n] for n in numbers]
        seen += numbers
    assert sorted(seen) == sorted(rows.tolist())


def test_order_depends_on_seed_and_epoch_alone():
    packed, target, _ = packed_cohort(50)

    def order(seed, epoch):
        torch.rand(3)  # the global generator plays no part
        loader = PackedLoader(packed, target, batch_size=50, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return row_numbers(next(iter(loader)))

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_the_batch_size_can_change_and_a_memory_map_can_be_read(tmp_path):
    packed, target, _ = packed_cohort(20)
    np.save(tmp_path / "rows.npy", packed.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="r+"))
    loader = PackedLoader(mapped, target, batch_size=20)
    loader.batch_size = 7
    assert [row_numbers(batch) for batch in loader] == [list(range(i, min(20, i + 7))) for i in (0, 7, 14)]
    assert [len(batch) for batch in loader.batches(skip=1)] == [7, 6]


def test_mistakes_of_a_packed_loader():
    packed, target, covariates = packed_cohort(5)
    with pytest.raises(ConfigError, match="0 samples"):
        PackedLoader(packed, target, batch_size=0)
    with pytest.raises(InputError, match=r"5 rows .* 4 targets"):
        PackedLoader(packed, target[:4], batch_size=1)
    with pytest.raises(InputError):
        PackedLoader(packed, target, covariates[:4], batch_size=1)


def test_batches_from_what_loaders_give():
    x, y, c = torch.ones(3, 2), torch.ones(3), torch.ones(3, 1)
    assert as_batch((x, y)).covariates is None
    assert as_batch([x, y, c]).covariates is c
    batch = Batch(x, y)
    assert as_batch(batch) is batch
    for wrong in ({"x": x}, (x,), (x, "label"), x):
        with pytest.raises(InputError, match="genotypes, target"):
            as_batch(wrong)


def test_split_covers_the_batch_in_order():
    batch = Batch(torch.arange(14).reshape(7, 2), torch.arange(7), torch.arange(7.0)[:, None])
    pieces = batch.split(3)
    assert [len(piece) for piece in pieces] == [3, 2, 2]
    assert torch.equal(torch.cat([piece.genotypes for piece in pieces]), batch.genotypes)
    assert torch.equal(torch.cat([piece.covariates for piece in pieces]), batch.covariates)
    assert batch.split(None) == batch.split(7) == [batch]
    assert Batch(torch.zeros(0, 2), torch.zeros(0)).split(3) == []


def samplers(dataset):
    own = torch.Generator()
    return {
        "global": DataLoader(dataset, batch_size=4, shuffle=True),
        "own": DataLoader(dataset, batch_size=4, shuffle=True, generator=own),
        "weighted": DataLoader(
            dataset, batch_size=4, sampler=WeightedRandomSampler(torch.rand(21), 21, generator=own)
        ),
        "workers": DataLoader(dataset, batch_size=4, shuffle=True, num_workers=1),
    }


@pytest.mark.parametrize("kind", ["global", "own", "weighted", "workers"])
def test_an_epoch_of_a_data_loader_starts_alike_and_can_be_entered_in_the_middle(kind):
    dataset = TensorDataset(torch.arange(21.0)[:, None], torch.arange(21.0))
    loader = samplers(dataset)[kind]

    def epoch(number, skip=0):
        seed_epoch(3, number, 0)
        return [batch.target.tolist() for batch in epoch_batches(loader, seed=3, epoch=number, skip=skip)]

    whole = epoch(0)
    assert epoch(1) != whole
    assert epoch(0) == whole
    assert epoch(0, skip=2) == whole[2:]
    assert epoch(0, skip=6) == []


def test_epochs_are_told_to_a_distributed_sampler():
    dataset = TensorDataset(torch.zeros(10, 1), torch.arange(10.0))
    sampler = torch.utils.data.DistributedSampler(dataset, num_replicas=2, rank=0, shuffle=True)
    loader = DataLoader(dataset, batch_size=5, sampler=sampler)
    orders = [tuple(next(epoch_batches(loader, seed=0, epoch=e)).target.tolist()) for e in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_windows_drop_no_last_batch():
    batches = [Batch(torch.zeros(1, 1), torch.full((1,), float(i))) for i in range(5)]
    assert [len(window) for window in windows(iter(batches), size=2)] == [2, 2, 1]


def test_length_is_unknown_where_the_loader_does_not_know():
    assert num_batches(iter([])) is None
    assert num_batches([1, 2]) == 2


def test_seeds_differ():
    assert len({derived_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}) == 64
    assert all(0 <= derived_seed(i) < 2**63 for i in range(100))

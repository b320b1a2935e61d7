"""Networks and cohorts small enough for a run of a second; shared by the tests of training."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NUM_FEATURES = 6


class SmallNetwork(nn.Module):
    """Two layers, dropout and, if wanted, batch normalisation, on encoded floats and covariates."""

    def __init__(self, *, num_outputs=1, dropout=0.3, has_norm=False, num_covariates=0, width=8):
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if has_norm else nn.Identity()
        self.first = nn.Linear(NUM_FEATURES + num_covariates, width)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width, num_outputs)

    def forward(self, genotypes, covariates=None):
        x = genotypes if covariates is None else torch.cat([genotypes, covariates], dim=1)
        return self.last(self.dropout(torch.relu(self.norm(self.first(x)))))


def make_network(seed=0, **options):
    torch.manual_seed(seed)
    return SmallNetwork(**options)


def cohort(num_samples=50, seed=1, dtype=torch.float32):
    """Genotypes (N, 6) and a 0/1 trait that the first two of them decide."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, NUM_FEATURES, generator=generator, dtype=dtype)
    return x, (x[:, 0] - x[:, 1] > 0).to(dtype)


def loaders(*, batch_size=8, shuffle=True, num_samples=50):
    x, y = cohort(num_samples)
    train = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)
    return train, DataLoader(TensorDataset(*cohort(20, seed=2)), batch_size=16)


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name

"""The losses of seeded runs are what they were: a faster step must take the same steps.

`python tests/unit/training/test_seeded_losses.py` writes seeded_losses.json anew, which only a change of the
mathematics of a model or of the training may ask for.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from snpdeconv.models.model import ARCHITECTURES, InterpretableSNPModel
from snpdeconv.training.data import PackedLoader
from snpdeconv.training.trainer import MultiGPUSNPTrainer

KEPT = Path(__file__).with_name("seeded_losses.json")
NUM_SNPS, NUM_PEOPLE, BATCH = 250, 192, 16
SEEDS = (1, 2, 3)


def losses(architecture: str, *, seed: int, dtype: torch.dtype = torch.float32):
    """The loss of each of 24 steps: four channels, missing genotypes, a padded token, covariates.

    Without dropout, whose draws are no part of the mathematics.
    """
    rng = np.random.default_rng(5)
    codes = rng.choice(4, size=(NUM_PEOPLE, 252), p=[0.4, 0.35, 0.2, 0.05]).astype(np.uint8)
    packed = np.bitwise_or.reduce(
        codes.reshape(NUM_PEOPLE, -1, 4) << np.array([0, 2, 4, 6], np.uint8), axis=2
    )
    covariates = rng.normal(size=(NUM_PEOPLE, 2)).astype(np.float32)
    effects = rng.normal(size=NUM_SNPS) * (rng.random(NUM_SNPS) < 0.1)
    target = (codes[:, :NUM_SNPS] % 3) @ effects + covariates[:, 0]
    target = ((target - target.mean()) / target.std()).astype(np.float32)
    torch.manual_seed(seed)
    model = InterpretableSNPModel(
        NUM_SNPS,
        architecture,
        encoding_dim=4,
        num_covariates=2,
        width=32,
        num_layers=2,
        num_heads=4,
        channels=(8, 12),
        patch=32,
        dropout=0.0,
        allele_frequency=torch.linspace(0.1, 0.9, NUM_SNPS),
    )
    kept: list[float] = []
    loader = PackedLoader(
        torch.from_numpy(packed),
        torch.from_numpy(target),
        torch.from_numpy(covariates),
        batch_size=BATCH,
        shuffle=True,
        seed=1,  # the same batches: what differs between seeds is the start
    )
    trainer = MultiGPUSNPTrainer(
        model,
        loader,
        loader,
        use_amp=dtype != torch.float32,
        amp_dtype=torch.bfloat16,
        loss="mse",
        learning_rate=3e-3,
        seed=seed,
        device="cpu",
        log_metrics=lambda step, values: kept.extend(
            [values["train/loss"]] if "train/loss" in values else []
        ),
        log_every=1,
    )
    trainer.train(2)
    return kept


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_takes_the_steps_that_it_took(architecture):
    kept = json.loads(KEPT.read_text())[architecture]
    now = losses(architecture, seed=1)
    assert len(now) == 24
    np.testing.assert_allclose(now, kept["1"], rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_stays_within_the_spread_of_seeds(architecture):
    kept = json.loads(KEPT.read_text())[architecture]
    spread = np.std([kept[str(seed)] for seed in SEEDS], axis=0, ddof=1).mean()
    now = losses(architecture, seed=1, dtype=torch.bfloat16)
    assert np.abs(np.array(now) - kept["1"]).mean() < spread
    assert now != kept["1"]  # it is another arithmetic


if __name__ == "__main__":
    table = {name: {str(seed): losses(name, seed=seed) for seed in SEEDS} for name in ARCHITECTURES}
    KEPT.write_text(json.dumps(table, indent=1) + "\n")

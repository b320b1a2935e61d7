"""What the tests of this folder train, small; of the package only torch, numpy and scipy are needed."""

import json
import os
from pathlib import Path

import torch

from snpdeconv import MultiGPUSNPTrainer
from snpdeconv.models.model import ARCHITECTURES, InterpretableSNPModel
from snpdeconv.training import distributed
from snpdeconv.training.data import PackedLoader

NUM_SNPS, NUM_SAMPLES = 96, 48
SIZES = {"encoding_dim": 2, "width": 16, "num_layers": 2, "num_heads": 2, "channels": (6, 9), "patch": 16}


def make_model(architecture, *, seed=3, num_snps=NUM_SNPS, **arguments):
    """A network that is not silent at its start, without dropout, which draws otherwise for other pieces."""
    torch.manual_seed(seed)
    model = InterpretableSNPModel(num_snps, architecture, **{**SIZES, "dropout": 0.0, **arguments})
    torch.nn.init.normal_(model.head.out.weight)
    return model


def cohort(num_samples=NUM_SAMPLES, *, num_snps=NUM_SNPS, seed=1):
    """Packed genotypes, a trait of two of them, and two covariates."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 3, (num_samples, num_snps), generator=generator)
    trait = (codes[:, 5] - codes[:, 70]).float() + torch.randn(num_samples, generator=generator)
    shifted = codes.view(num_samples, -1, 4) << torch.tensor([0, 2, 4, 6])
    return shifted.sum(-1).to(torch.uint8), trait, torch.randn(num_samples, 2, generator=generator)


def make_trainer(model, device, *, batch_size=16, micro_batch_size=None, rank=0, world=1, **options):
    """Trains on the cohort in fp32; the last batch of an epoch is smaller."""
    packed, trait, _ = cohort()
    how = {"rank": rank, "world_size": world, "device": torch.device(device)}
    rows = torch.arange(NUM_SAMPLES - 8)
    packed = packed.to(device)
    train = PackedLoader(packed, trait, rows=rows, batch_size=batch_size, shuffle=True, seed=4, **how)
    val = PackedLoader(packed, trait, rows=rows[-8:] + 8, batch_size=8, **how)
    settings = {"use_amp": False, "loss": "mse", "learning_rate": 1e-3, "seed": 5, "log_every": 1, **options}
    return MultiGPUSNPTrainer(model, train, val, device=device, micro_batch_size=micro_batch_size, **settings)


def losses_of(model, device, **options):
    """The loss of each step and epoch."""
    logged = []
    trainer = make_trainer(
        model, device, log_metrics=lambda step, values: logged.append(values.get("train/loss")), **options
    )
    history = trainer.train(2)
    return [loss for loss in logged if loss is not None] + history["train_loss"] + history["val_loss"]


def train_on_ranks(folder: Path, environment: dict[str, str], kind: str) -> None:
    """One of several ranks: every architecture, losses into a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    place = distributed.init_from_environment(device=torch.device(kind), timeout_min=1)
    found = {}
    for architecture in ARCHITECTURES:
        # Each rank begins with other weights: the first one's must win.
        model = make_model(architecture, seed=3 + place.rank)
        found[architecture] = losses_of(model, place.device, rank=place.rank, world=place.world_size)
    (folder / f"losses-{place.rank}.json").write_text(json.dumps(found))
    distributed.shut_down()

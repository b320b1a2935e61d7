"""Chooses the learning-rate multipliers of `models.model` on validation people of the seeds for choices.

No test person and no seed of a report is looked at; `machine` says which seeds are for what.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import TUNING_SEEDS, write_results

from snpdeconv.config import load_config
from snpdeconv.device import choose_precision
from snpdeconv.models import model
from snpdeconv.pipelines.dataset import open_cohort, prepare
from snpdeconv.pipelines.fit import fit, make_training_loss
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.simulation.simulate import simulate

SPEEDS = ((1.0, 1.0), (4.0, 1.0), (4.0, 0.3), (4.0, 0.1), (1.0, 0.3))
ARCHITECTURES = ("cnn", "cnn_transformer", "gnn")
LINEAR = ("fitted", "trained")


def validation(folder: Path, architecture: str, linear: str, *, seed: int, epochs: int) -> float:
    """R² of the validation people at the epoch kept."""
    changed = [
        f"model.architecture={architecture}", f"model.linear={linear}", f"training.epochs={epochs}",
        f"training.seed={seed}", "training.batch_size=32", "model.width=32", "interpretation.pairs=false",
    ]  # fmt: skip
    config = load_config("small_cpu", overrides=changed)
    inputs = Inputs.from_paths(
        genotypes=folder / "cohort.bed", phenotypes=folder / "phenotypes.tsv", trait="trait"
    )
    dataset = prepare(config, inputs, cohort=open_cohort(inputs.genotypes, data=config.data))
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as checkpoints:
        fitted = fit(
            config,
            dataset,
            genotypes=torch.from_numpy(dataset.packed),
            loss=make_training_loss(config.training, dataset),
            batch_size=32,
            device=cpu,
            precision=choose_precision(cpu, requested="fp32"),
            checkpoint_dir=Path(checkpoints),
            log_metrics=None,
        )
    value = fitted.validation()["val_r2"]
    assert value is not None
    return value


def main() -> None:
    """Prints and keeps the mean of each choice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--people", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        os.environ["SNPDECONV_HOME"] = home
        for seed in TUNING_SEEDS[: given.seeds]:
            folder = Path(home) / str(seed)
            simulate(folder, num_samples=given.people, num_variants=300, num_causal=10, pve=0.5, seed=seed)
            for architecture in ARCHITECTURES:
                for linear in LINEAR:
                    for model.LINEAR_LR_SCALE, model.NETWORK_LR_SCALE in SPEEDS:
                        r2 = validation(folder, architecture, linear, seed=seed, epochs=given.epochs)
                        rows.append({"seed": seed, "architecture": architecture, "linear": linear})
                        rows[-1] |= {
                            "wide": model.LINEAR_LR_SCALE,
                            "network": model.NETWORK_LR_SCALE,
                            "r2": r2,
                        }
                        print(rows[-1], flush=True)
    means = [
        {"linear": linear, "wide": wide, "network": network, "mean_r2": float(np.mean(found))}
        for linear in LINEAR
        for wide, network in SPEEDS
        if (
            found := [
                row["r2"]
                for row in rows
                if (row["linear"], row["wide"], row["network"]) == (linear, wide, network)
            ]
        )
    ]
    write_results("tuning", {"arguments": vars(given), "mean": means, "runs": rows})


if __name__ == "__main__":
    main()

"""The cnn with its normalisation by sample beside that by batch which it had: test R2 on simulated cohorts.

usage: python benchmarks/cnn_norm.py [--seeds tuning|report] [--json FILE]
2,000 people, 1,000 SNPs, 8 of them causal, PVE .5, the settings of small_cpu without pairs. Normalisation
(over all channels, over each, by mean square alone) was chosen on the seeds for tuning; those of the report
were not looked at before. The learning rate stayed the preset's.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch

from snpdeconv.config import load_config
from snpdeconv.device import choose_precision
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines import fit as fitting
from snpdeconv.pipelines.dataset import open_cohort, prepare
from snpdeconv.pipelines.evaluation import evaluate_test
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.simulation.simulate import simulate

SEEDS = {"tuning": (1, 2, 3), "report": (101, 102, 103)}
CPU = torch.device("cpu")


def test_r2(folder: Path, *, norm: str, linear: str, seed: int) -> float:
    """Of one network, trained to its end."""
    fitting.InterpretableSNPModel = partial(InterpretableSNPModel, norm=norm)  # type: ignore[misc,assignment]
    changes = {"model.linear": linear, "training.seed": seed, "interpretation.pairs": "false"}
    config = load_config("small_cpu", overrides=[f"{name}={value}" for name, value in changes.items()])
    inputs = Inputs.from_paths(
        genotypes=folder / "cohort.bed", phenotypes=folder / "phenotypes.tsv", trait="trait"
    )
    dataset = prepare(config, inputs, cohort=open_cohort(inputs.genotypes, data=config.data))
    precision = choose_precision(CPU, requested="fp32")
    with tempfile.TemporaryDirectory() as checkpoints:
        fitted = fitting.fit(
            config,
            dataset,
            genotypes=torch.from_numpy(dataset.packed),
            loss=fitting.make_training_loss(config.training, dataset),
            batch_size=fitting.choose_batch_size(config, dataset),
            device=CPU,
            precision=precision,
            checkpoint_dir=Path(checkpoints),
            log_metrics=None,
        )
        found = evaluate_test(
            fitted.model, dataset, batch_size=64, device=CPU, precision=precision, seed=seed
        )
    return float(found.test["r2"]["value"] or 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", choices=SEEDS, default="report")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # steps are short: threads would wait for each other
    rows = []
    for seed in SEEDS[arguments.seeds]:
        for trait in ("additive", "dominance"):
            with tempfile.TemporaryDirectory() as folder:
                cohort = Path(folder) / "cohort"
                sizes = {"num_samples": 2000, "num_variants": 1000, "num_causal": 8, "pve": 0.5}
                simulate(cohort, trait=trait, seed=seed, **sizes)  # type: ignore[arg-type]
                for linear in ("fitted", "trained"):
                    row = {"seed": seed, "trait": trait, "linear": linear}
                    row |= {norm: test_r2(cohort, norm=norm, linear=linear, seed=seed)
                            for norm in ("batch", "sample")}  # fmt: skip
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

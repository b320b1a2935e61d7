"""Ancestry of real people: every architecture against 20 principal components and logistic regression.

usage: python benchmarks/real_genotypes.py FOLDER [--seeds 1000 1001 1002] [--set key=value ...]
FOLDER holds hapmap3/hapmap3.bed and hapmap3/populations.tsv. CHB and CHD, which these SNPs cannot tell apart,
are merged into one class, as a user would do it in the table. Both sides see the same split.
Writes benchmarks/results/real_genotypes.json.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from machine import REPORT_SEEDS, write_results
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from snpdeconv.config import load_config
from snpdeconv.console import configure_logging
from snpdeconv.genetics.pca import fit_components
from snpdeconv.pipelines.dataset import Dataset, open_cohort, prepare
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.pipelines.train import train

ARCHITECTURES = ("cnn", "cnn_transformer", "gnn")
NUM_COMPONENTS = 20


def components_and_regression(dataset: Dataset) -> float:
    """Macro-F1 on the test people of logistic regression on components; training people fit both."""
    rows = dataset.trait.rows
    frequency = np.full(len(dataset.cohort.variants), np.nan)
    frequency[dataset.columns] = dataset.frequency
    components = fit_components(
        dataset.cohort.genotypes,
        rows=rows[dataset.split.train],
        columns=dataset.columns,
        chrom=dataset.cohort.variants.chrom,
        frequency=frequency,
        num_components=NUM_COMPONENTS,
        seed=1,
    )
    scores = components.project(dataset.cohort.genotypes, rows=rows)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    regression.fit(scores[dataset.split.train], dataset.trait.values[dataset.split.train])
    predicted = regression.predict(scores[dataset.split.test])
    return float(f1_score(dataset.trait.values[dataset.split.test], predicted, average="macro"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*REPORT_SEEDS[:3]])
    parser.add_argument("--traits", nargs="+", default=["population", "super_population"])
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    configure_logging()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        table = pd.read_csv(arguments.folder / "hapmap3" / "populations.tsv", sep="\t", dtype=str)
        table["population"] = table["population"].replace({"CHB": "CHB+CHD", "CHD": "CHB+CHD"})
        phenotypes = Path(temporary) / "populations.tsv"
        table.to_csv(phenotypes, sep="\t", index=False, na_rep="NA")
        for trait in arguments.traits:
            inputs = Inputs.from_paths(
                genotypes=arguments.folder / "hapmap3" / "hapmap3.bed", phenotypes=phenotypes, trait=trait
            )
            cohort = open_cohort(inputs.genotypes, data=load_config("small_cpu").data)
            for seed in arguments.seeds:
                for architecture in arguments.architectures:
                    overrides = [
                        f"training.seed={seed}",
                        f"model.architecture={architecture}",
                        "interpretation.max_samples=32",
                        "interpretation.gradient_steps=8",
                        *arguments.overrides,
                    ]
                    config = load_config("small_cpu", overrides=overrides)
                    started = time.perf_counter()
                    out = Path(temporary) / f"{trait}-{seed}-{architecture}"
                    result = train(config, inputs, model_name="benchmark", out=out)
                    seconds = time.perf_counter() - started
                    rows.append(
                        {
                            "trait": trait,
                            "seed": seed,
                            "architecture": architecture,
                            "macro_f1": result.test["macro_f1"]["value"],
                            "accuracy": result.test["accuracy"]["value"],
                            "components_macro_f1": components_and_regression(
                                prepare(config, inputs, cohort=cohort)
                            ),
                            "seconds": round(seconds, 1),
                        }
                    )
                    print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    summary = frame.groupby(["trait", "architecture"], as_index=False)[
        ["macro_f1", "components_macro_f1", "accuracy", "seconds"]
    ].mean()
    print(summary.to_string(index=False, float_format="%.3f"))
    options = {"seeds": arguments.seeds, "set": arguments.overrides}
    write_results("real_genotypes", {"arguments": options, "runs": rows, "mean": summary.to_dict("records")})


if __name__ == "__main__":
    main()

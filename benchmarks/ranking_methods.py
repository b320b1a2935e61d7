"""Our methods behind the interface of the benchmark, with the settings that the package has by default."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ranking_cells import Replicate
from ranking_metrics import Answer
from ranking_peers import Method

from snpdeconv.config import load_config
from snpdeconv.finemapping import (
    SingleEffectsFit,
    fit_one_against_rest,
    fit_single_effects,
    joint_credible_sets,
    joint_pip,
)
from snpdeconv.finemapping.fdr import permutation_scores, q_values
from snpdeconv.finemapping.joint import Deconvolution, deconvolve
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.samples import Samples
from snpdeconv.simulation.writers import write_bed

PRESET = "small_cpu"
ALL_KINDS = ("quantitative", "binary", "multiclass")
PAIR_PIP = 0.5
PAIR_Q = 0.05


def _target(study: Replicate) -> NDArray[Any]:
    return study.trait.astype(np.int64) if study.kind == "multiclass" else study.trait


def single_effects(study: Replicate) -> Answer:
    """Single SNPs and their dominance, without pairs."""
    if study.kind == "multiclass":
        fits = fit_one_against_rest(study.genotypes, _target(study), covariates=study.covariates)
    else:
        fits = (
            fit_single_effects(study.genotypes, study.trait, kind=study.kind, covariates=study.covariates),
        )
    pip = joint_pip(fits)
    further = 1 - np.prod([1 - fit.next_effect for fit in fits], axis=0)
    predicted = None
    if study.covariates is None:
        predicted = fits[0].predict(study.holdout_genotypes)
    return Answer(
        score=1 - (1 - pip) * (1 - 0.5 * further),
        credible_sets=_sets(fits, study),
        predicted=predicted,
        extra={"effects": sum(len(fit.effects) for fit in fits)},
    )


def deconvolution(study: Replicate) -> Answer:
    """Single SNPs, dominance and pairs: what ``rank`` does. Decoys are counted outside of the time."""
    how: dict[str, Any] = {
        "chrom": study.variants.chrom,
        "position_bp": study.variants.position_bp,
        "covariates": study.covariates,
    }
    found = deconvolve(study.genotypes, _target(study), kind=study.kind, kinship="auto", **how)
    pairs = found.pairs
    reported = pairs.pip > PAIR_PIP
    predicted = None
    if study.covariates is None:
        predicted = found.terms.predict(study.holdout_genotypes)[:, 0]
    return Answer(
        score=found.score,
        credible_sets=_sets(found.fits, study),
        pairs=np.column_stack([pairs.first, pairs.second])[reported],
        q_value=partial(_q_values, study, found, how),
        predicted=predicted,
        extra={
            "effects": sum(len(fit.effects) for fit in found.fits),
            "pairs_of_small_q": int((pairs.q_value <= PAIR_Q).sum()),
        },
    )


def _sets(fits: tuple[SingleEffectsFit, ...], study: Replicate) -> tuple[NDArray[np.int64], ...]:
    return tuple(one.variants for _, one in joint_credible_sets(fits, study.genotypes))


def _q_values(study: Replicate, found: Deconvolution, how: dict[str, Any]) -> NDArray[np.float64]:
    num_draws = load_config(PRESET).interpretation.num_permutations
    decoys = permutation_scores(study.genotypes, _target(study), found, **how, draws=range(num_draws))
    return q_values(study.genotypes, found, decoys)


def network(study: Replicate, *, architecture: str) -> Answer:
    """A network as ``train`` makes it, which tests on people of its own; ranked by integrated gradients."""
    from snpdeconv.pipelines.predict import predict
    from snpdeconv.pipelines.run_folder import Inputs
    from snpdeconv.pipelines.train import train

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["SNPDECONV_HOME"] = str(folder / "home")
        cohort = _write(folder / "cohort", study, study.genotypes)
        holdout = _write(folder / "holdout", study, study.holdout_genotypes)
        names = [f"i{n}" for n in range(len(study.trait))]
        table = folder / "phenotypes.tsv"
        pd.DataFrame({"IID": names, "trait": study.trait}).to_csv(table, sep="\t", index=False)
        config = load_config(
            PRESET,
            overrides=[
                f"model.architecture={architecture}",
                "data.test_fraction=0.05",
                "training.epochs=12",
                "training.patience=4",
                "interpretation.methods=integrated_gradients",
                "interpretation.rank_by=integrated_gradients",
            ],
        )
        inputs = Inputs.from_paths(genotypes=cohort, phenotypes=table, trait="trait")
        train(config, inputs, model_name="benchmark", out=folder / "run")
        predictions = folder / "predictions.tsv"
        predict(config, model="benchmark@champion", genotypes=str(holdout), covariates=None, out=predictions)
        predicted = pd.read_csv(predictions, sep="\t")
        ranking = pd.read_csv(folder / "run" / "ranking.tsv", sep="\t").set_index("variant_id")
    score = ranking["integrated_gradients"].reindex(study.variants.variant_id).fillna(0.0)
    column = predicted.columns[-1] if study.kind == "binary" else "prediction"
    return Answer(score=score.to_numpy(), predicted=predicted[column].to_numpy(dtype=np.float64))


def _write(folder: Path, study: Replicate, genotypes: PackedGenotypes) -> Path:
    folder.mkdir()
    names = np.array([f"i{n}" for n in range(genotypes.num_samples)], dtype=object)
    samples = Samples(fid=names, iid=names)
    write_bed(folder / "cohort", genotypes.codes(), variants=study.variants, samples=samples)
    return folder / "cohort.bed"


OURS = {
    "single_effects": Method(single_effects, kinds=ALL_KINDS, on_controls=True, slow=True),
    "deconvolution": Method(deconvolution, kinds=ALL_KINDS, on_controls=True),
    **{
        f"network_{architecture}": Method(partial(network, architecture=architecture), slow=True)
        for architecture in ("cnn", "cnn_transformer", "gnn")
    },
}

"""The methods that people use today, behind one interface.

Settings were chosen on seeds 0 to 3. Shapes: N samples, V variants, P columns.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ranking_cells import Replicate
from ranking_metrics import Answer

from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.stats.association import marginal_association

Floats = NDArray[np.float64]
SUSIE_EFFECTS = 20
# Fewer people with two copies of the minor allele leave a dominance column that is an outlier or two.
LEAST_HOMOZYGOTES = 5


@dataclass(frozen=True)
class Method:
    """A method of the benchmark.

    Attributes:
        run: From a study to an answer; what it takes is what is timed.
        kinds: Kinds of traits that it knows.
        on_controls: Whether it says something that a study without causal SNPs can prove wrong.
        slow: Whether it runs only where it is named.
    """

    run: Callable[[Replicate], Answer]
    kinds: tuple[str, ...] = ("quantitative", "binary")
    on_controls: bool = False
    slow: bool = False


def association(study: Replicate) -> Answer:
    result = marginal_association(study.genotypes, study.trait, kind=study.kind, covariates=study.covariates)
    tested = len(result.neg_log10_p)
    significant = int((result.neg_log10_p > -np.log10(0.05 / tested)).sum())
    extra = {"lambda_gc": result.lambda_gc, "num_significant": significant}
    return Answer(score=result.neg_log10_p, extra=extra)


@dataclass(frozen=True)
class Scaled:
    """Standardised dosages of the study and, in the same unit, of the holdout; C order."""

    columns: Floats
    holdout: Floats

    @classmethod
    def of(cls, study: Replicate) -> Scaled:
        """Scales both by the people of the study."""
        dosage = study.genotypes.codes().astype(np.float64)
        mean, sd = dosage.mean(axis=0), dosage.std(axis=0)
        unit = np.where(sd > 0, sd, 1.0)
        return cls((dosage - mean) / unit, (study.holdout_genotypes.codes() - mean) / unit)


def lasso(study: Replicate) -> Answer:
    """Linear or logistic lasso, its penalty by cross-validation; |coefficient| of standardised dosages."""
    from sklearn.linear_model import LassoCV, LogisticRegressionCV

    scaled = Scaled.of(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the densest ends of the paths, which are not chosen
        if study.kind == "binary":
            fit = LogisticRegressionCV(
                Cs=np.geomspace(0.012, 0.12, 6), cv=3, penalty="l1", solver="liblinear",
                scoring="neg_log_loss", tol=1e-3, max_iter=100, random_state=0,
            ).fit(scaled.columns, study.trait)  # fmt: skip
            coefficient = fit.coef_[0]
        else:
            # Down to a thirtieth of the largest penalty, but not to where noise alone fills the model.
            largest = np.abs(scaled.columns.T @ (study.trait - study.trait.mean())).max() / len(study.trait)
            floor = 0.4 * study.trait.std() * np.sqrt(np.log(scaled.columns.shape[1]) / len(study.trait))
            penalties = np.geomspace(largest, min(max(largest / 30, floor), largest / 2), 30)
            fit = LassoCV(alphas=penalties, cv=5, max_iter=1000, tol=1e-3).fit(scaled.columns, study.trait)
            coefficient = fit.coef_
    return Answer(
        score=np.abs(coefficient),
        predicted=scaled.holdout @ coefficient + np.ravel(fit.intercept_)[0],
        extra={"num_kept": int((coefficient != 0).sum())},
    )


def boosted_trees(study: Replicate) -> Answer:
    """XGBoost with early stopping, fitted again on everybody; mean absolute SHAP values of the people."""
    import xgboost

    dosage = study.genotypes.codes().astype(np.float32)
    settings = {
        "objective": "binary:logistic" if study.kind == "binary" else "reg:squarederror",
        "tree_method": "hist", "max_bin": 4, "max_depth": 4, "eta": 0.05, "subsample": 0.7,
        "min_child_weight": 5, "base_score": float(study.trait.mean()), "nthread": 1, "seed": 0,
    }  # fmt: skip
    shuffled = np.random.default_rng(0).permutation(len(study.trait))
    held, kept = shuffled[: len(shuffled) // 6], shuffled[len(shuffled) // 6 :]
    training = xgboost.QuantileDMatrix(dosage[kept], study.trait[kept], max_bin=4)
    watched = xgboost.QuantileDMatrix(dosage[held], study.trait[held], ref=training, max_bin=4)
    sought = xgboost.train(
        settings, training, 500, evals=[(watched, "held")], early_stopping_rounds=30, verbose_eval=False
    )
    everybody = xgboost.QuantileDMatrix(dosage, study.trait, max_bin=4)
    model = xgboost.train(settings, everybody, sought.best_iteration + 1)
    shares = np.abs(model.predict(everybody, pred_contribs=True))[:, :-1].mean(axis=0)
    holdout = xgboost.DMatrix(study.holdout_genotypes.codes().astype(np.float32))
    return Answer(
        score=shares.astype(np.float64),
        predicted=model.predict(holdout, output_margin=True).astype(np.float64),
        extra={"num_trees": sought.best_iteration + 1},
    )


def susie(study: Replicate) -> Answer:
    """pysusie on dosages; a binary trait as 0 and 1."""
    dosage = study.genotypes.codes().astype(np.float64)
    return _susie(study, dosage, study.holdout_genotypes.codes().astype(np.float64), np.arange(len(dosage.T)))


def susie_dominance(study: Replicate) -> Answer:
    """pysusie on dosages and heterozygote indicators; a SNP's columns count together."""
    counts = study.genotypes.counts()
    varied = np.flatnonzero(np.minimum(counts[0], counts[2]) >= LEAST_HOMOZYGOTES)

    def columns(genotypes: PackedGenotypes) -> Floats:
        codes = genotypes.codes()
        return np.hstack([codes, codes[:, varied] == 1]).astype(np.float64)

    seen = columns(study.genotypes)
    num_variants = study.genotypes.num_variants
    dosage, het = seen[:, varied], seen[:, num_variants:]
    centred = dosage - dosage.mean(axis=0)
    slope = (centred * het).sum(axis=0) / (centred**2).sum(axis=0)
    het -= slope * dosage
    holdout = columns(study.holdout_genotypes)
    holdout[:, num_variants:] -= slope * holdout[:, varied]
    return _susie(study, seen, holdout, np.concatenate([np.arange(num_variants), varied]))


def _susie(study: Replicate, columns: Floats, holdout: Floats, variant: NDArray[np.int64]) -> Answer:
    """Fits columns (N, P) that belong to ``variant`` (P,)."""
    import pysusie

    trait, fitted = study.trait, columns
    if study.covariates is not None:
        basis = np.linalg.qr(np.column_stack([np.ones(len(trait)), study.covariates]))[0]
        trait, fitted = trait - basis @ (basis.T @ trait), columns - basis @ (basis.T @ columns)
    fit = pysusie.susie(np.asfortranarray(fitted), trait, L=SUSIE_EFFECTS)
    none = np.ones(study.genotypes.num_variants)
    np.multiply.at(none, variant, 1 - np.asarray(fit.pip))
    sets = fit.sets["cs"] or []
    return Answer(
        score=1 - none,
        credible_sets=tuple(np.unique(variant[np.asarray(members)]) for members in sets),
        predicted=None if study.covariates is not None else pysusie.predict_susie(fit, newx=holdout),
        extra={"sweeps": int(pysusie.susie_get_niter(fit)), "converged": float(fit.converged)},
    )


def plink2(study: Replicate) -> Answer:
    """Association as plink2 computes it, from a .bed; the files are written within the time."""
    from snpdeconv.genetics.samples import Samples
    from snpdeconv.simulation.writers import write_bed

    names = np.array([f"i{n}" for n in range(len(study.trait))], dtype=object)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "cohort"
        samples = Samples(fid=names, iid=names)
        write_bed(prefix, study.genotypes.codes(), variants=study.variants, samples=samples)
        values = study.trait + 1 if study.kind == "binary" else study.trait
        table = pd.DataFrame({"#FID": names, "IID": names, "trait": values})
        table.to_csv(prefix.with_suffix(".pheno"), sep="\t", index=False)
        model = ["--glm", "allow-no-covars", "hide-covar", "log10"]
        subprocess.run(
            ["plink2", "--bfile", prefix, "--pheno", prefix.with_suffix(".pheno"), *model, "--threads", "1",
             "--out", prefix],
            check=True, capture_output=True,
        )  # fmt: skip
        results = pd.read_csv(next(Path(folder).glob("*.glm.*")), sep="\t")
    found = results.drop_duplicates("ID").set_index("ID")["LOG10_P"]
    return Answer(score=found.reindex(study.variants.variant_id).fillna(0.0).to_numpy())


PEERS = {
    "marginal": Method(association, kinds=("quantitative", "binary", "multiclass"), on_controls=True),
    "lasso": Method(lasso),
    "xgboost_shap": Method(boosted_trees),
    "susie": Method(susie, on_controls=True),
    "susie_dominance": Method(susie_dominance, on_controls=True),
}
if shutil.which("plink2"):
    PEERS["plink2"] = Method(plink2)

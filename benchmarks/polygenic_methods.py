"""Ours and the peers on studies with a background, behind one interface, and what an answer is worth.

SuSiE-inf is the authors' own package, which takes part where it is installed
(github.com/FinucaneLab/fine-mapping-inf, folder susieinf). Shapes: N people, V SNPs, C sparse causal SNPs,
L effects.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygenic_cells import Floats, Study, standardised
from ranking_metrics import FALSE_R2
from scipy import stats
from scipy.optimize import minimize_scalar

from snpdeconv.config import load_config
from snpdeconv.finemapping import Settings, joint_credible_sets
from snpdeconv.finemapping.fdr import permutation_scores, q_values
from snpdeconv.finemapping.joint import Deconvolution, GivenKinship, deconvolve
from snpdeconv.stats.association import marginal_association

PRESET = "small_cpu"
Q_LEVEL = 0.1
# What a method without q-values reports.
PIP_LEVEL = 0.9
SUSIE_EFFECTS = 20
SUSIE_INF_EFFECTS = 10
COVERAGE = 0.95


@dataclass(frozen=True)
class Answer:
    """What a method says of a study.

    Attributes:
        sets: The SNPs of each 95 % credible set.
        reported: Gives (V,) whether a SNP is reported at a false discovery rate of .1, outside of the time.
        lambda_gc: Inflation of the method's own single-SNP tests.
        extra: Further figures of its own.
    """

    sets: tuple[NDArray[np.int64], ...]
    reported: Callable[[], NDArray[np.bool_]]
    lambda_gc: float
    extra: dict[str, float]


Method = Callable[[Study], Answer]


def judge(study: Study, answer: Answer) -> dict[str, Any]:
    """Counts sets and reported SNPs, and of both what is true where the truth is known.

    A set is true that holds a sparse causal SNP; a SNP is false that has r² < .1 with all of these. Where
    there is no such SNP sets alone are counted, and the draws of the null spared.
    """
    record: dict[str, Any] = {"sets": len(answer.sets), "lambda_gc": answer.lambda_gc, **answer.extra}
    if study.causal is not None and not len(study.causal):
        return record
    started = time.process_time()
    reported = np.flatnonzero(answer.reported())
    record |= {"reported": len(reported), "q_cpu_seconds": time.process_time() - started}
    if study.causal is not None:
        inside = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *answer.sets]))
        z = standardised(study.genotypes.codes())
        r2 = np.square(z[:, reported].T @ z[:, study.causal] / len(z))
        record |= {
            "hold": sum(bool(np.isin(study.causal, members).any()) for members in answer.sets),
            "found": int(np.isin(study.causal, inside).sum()),
            "causal": len(study.causal),
            "false": int((r2 < FALSE_R2).all(axis=1).sum()),
        }
    return record


def ours(study: Study, *, kinship: GivenKinship = "auto", pairs: bool = True) -> Answer:
    """The deconvolution that ``rank`` makes."""
    how: dict[str, Any] = {
        "chrom": study.variants.chrom,
        "position_bp": study.variants.position_bp,
        "covariates": study.covariates,
        "pairs": pairs,
        "settings": Settings(pairs_beside_background=False),
    }
    found = deconvolve(study.genotypes, study.trait, kind=study.kind, kinship=kinship, **how)
    sets = tuple(one.variants for _, one in joint_credible_sets(found.fits, study.genotypes))
    return Answer(
        sets=sets,
        reported=partial(_small_q, study, found, how),
        lambda_gc=_plain_inflation(study),
        extra={
            "pairs": int((found.pairs.pip > 0.5).sum()),
            "background": found.background.components.heritability if found.background else 0.0,
        },
    )


def _small_q(study: Study, found: Deconvolution, how: dict[str, Any]) -> NDArray[np.bool_]:
    draws = range(load_config(PRESET).interpretation.num_permutations)
    decoys = permutation_scores(study.genotypes, study.trait, found, **how, draws=draws)
    return q_values(study.genotypes, found, decoys) <= Q_LEVEL


def _plain_inflation(study: Study) -> float:
    tested = marginal_association(study.genotypes, study.trait, kind=study.kind, covariates=study.covariates)
    return tested.lambda_gc


def susie(study: Study) -> Answer:
    """pysusie on dosages, a binary trait as 0 and 1, covariates projected out."""
    trait, z = _projected(study)
    return _of_susie(_pysusie(z, trait), lambda_gc=_plain_inflation(study))


def whitened(study: Study, *, rounds: int = 2) -> Answer:
    """pysusie on data whitened by a mixed model of the typed SNPs' kinship.

    The background's share is estimated by REML, again given the sparse effects, ``rounds`` times in all.
    """
    z = standardised(study.genotypes.codes())
    values, vectors = np.linalg.eigh(z @ z.T / z.shape[1])
    turned = _Turned(
        eigenvalues=np.maximum(values, 0),
        trait=vectors.T @ study.trait,
        fixed=vectors.T @ _fixed(study),
        columns=vectors.T @ z,
    )
    share = turned.reml(turned.trait)
    trait, columns = turned.whitened(share)
    chi2 = (columns.T @ trait) ** 2 / (columns**2).sum(axis=0) / (trait @ trait / len(trait))
    fit = _pysusie(columns, trait)
    for _ in range(rounds - 1):
        effects = (np.asarray(fit.alpha) * np.asarray(fit.mu)).sum(axis=0)
        share = turned.reml(turned.trait - turned.columns @ effects)
        trait, columns = turned.whitened(share)
        fit = _pysusie(columns, trait)
    answer = _of_susie(fit, lambda_gc=_inflation(chi2))
    return Answer(answer.sets, answer.reported, answer.lambda_gc, answer.extra | {"background": share})


@dataclass(frozen=True)
class _Turned:
    """Data in the basis of the kinship's eigenvectors, where the background's parts are independent."""

    eigenvalues: Floats  # (N,)
    trait: Floats  # (N,)
    fixed: Floats  # (N, P) intercept and covariates
    columns: Floats  # (N, V)

    def reml(self, trait: Floats) -> float:
        """Share of the variance of ``trait`` (N,) that the kinship explains."""
        freedom = len(trait) - self.fixed.shape[1]

        def lost(share: float) -> float:
            variance = share * self.eigenvalues + 1 - share
            weighted = self.fixed / variance[:, None]
            gram = weighted.T @ self.fixed
            rest = trait - self.fixed @ np.linalg.solve(gram, weighted.T @ trait)
            scale = np.log((rest**2 / variance).sum() / freedom)
            return float(freedom * scale + np.log(variance).sum() + np.linalg.slogdet(gram)[1])

        return float(minimize_scalar(lost, bounds=(0, 0.99), method="bounded").x)

    def whitened(self, share: float) -> tuple[Floats, Floats]:
        """Trait (N,) and columns (N, V) with white noise, fixed effects projected out."""
        weight = 1 / np.sqrt(share * self.eigenvalues + 1 - share)
        basis = np.linalg.qr(self.fixed * weight[:, None])[0]
        trait, columns = self.trait * weight, self.columns * weight[:, None]
        return trait - basis @ (basis.T @ trait), columns - basis @ (basis.T @ columns)


def susie_inf(study: Study) -> Answer:
    """SuSiE-inf as its authors distribute it, on sums of standardised dosages and trait."""
    import susieinf

    trait, z = _projected(study)
    trait /= trait.std()
    z /= z.std(axis=0)
    num_people = len(z)
    values, vectors = np.linalg.eigh(z.T @ z / num_people)
    spectrum = np.maximum(num_people * values, 0)
    products = z.T @ trait
    fit = susieinf.susie(
        products / np.sqrt(num_people),
        1.0,
        num_people,
        SUSIE_INF_EFFECTS,
        V=vectors,
        Dsq=spectrum,
        verbose=False,
    )
    sets = susieinf.cred(fit["PIP"], coverage=COVERAGE, V=vectors, Dsq=spectrum, n=num_people)
    pip = 1 - np.prod(1 - fit["PIP"], axis=1)
    variance = fit["tausq"] * spectrum + fit["sigmasq"]
    chi2 = (vectors @ (vectors.T @ products / variance)) ** 2 / (vectors**2 @ (spectrum / variance))
    background = fit["tausq"] * z.shape[1]
    return Answer(
        sets=tuple(np.asarray(members) for members in sets),
        reported=lambda: pip > PIP_LEVEL,
        lambda_gc=_inflation(chi2),
        extra={"background": float(background / (background + fit["sigmasq"]))},
    )


def _fixed(study: Study) -> Floats:
    """(N, P) the intercept and the covariates."""
    intercept = np.ones((len(study.trait), 1))
    return intercept if study.covariates is None else np.hstack([intercept, study.covariates])


def _projected(study: Study) -> tuple[Floats, Floats]:
    """Trait (N,) and standardised dosages (N, V) less what the fixed effects explain."""
    basis = np.linalg.qr(_fixed(study))[0]
    z = standardised(study.genotypes.codes())
    return study.trait - basis @ (basis.T @ study.trait), z - basis @ (basis.T @ z)


def _pysusie(columns: Floats, trait: Floats) -> Any:
    import pysusie

    return pysusie.susie(
        np.asfortranarray(columns), trait, L=SUSIE_EFFECTS, intercept=False, standardize=False
    )


def _of_susie(fit: Any, *, lambda_gc: float) -> Answer:
    pip = np.asarray(fit.pip)
    return Answer(
        sets=tuple(np.sort(np.asarray(members)) for members in fit.sets["cs"] or []),
        reported=lambda: pip > PIP_LEVEL,
        lambda_gc=lambda_gc,
        extra={"converged": float(fit.converged)},
    )


def _inflation(chi2: Floats) -> float:
    return float(np.median(chi2) / stats.chi2.ppf(0.5, df=1))


OURS: dict[str, dict[str, Any]] = {"ours": {}, "ours_without": {"kinship": None}}
"""The settings of ours that are compared: further arguments of the deconvolution."""

PEERS: dict[str, Method] = {"susie": susie, "whitened": whitened}
if find_spec("susieinf"):
    PEERS["susie_inf"] = susie_inf

METHODS: dict[str, Method] = {name: partial(ours, **settings) for name, settings in OURS.items()} | PEERS

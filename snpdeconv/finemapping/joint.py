"""Fine mapping of one trait: single effects of dosage, dominance, pairs and interactions, fitted as one sum.

Owns the order of fits and scans, the prior of pairs and of interactions, and the terms that predict other
samples; knows no file and no name. Shapes: N samples, V variants, P pairs, E interactions (products of a SNP
and a covariate), O outputs, C covariates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from snpdeconv.epistasis import CovariateScan, PairScan, scan_covariates, scan_pairs
from snpdeconv.epistasis.dosages import Dosages, products
from snpdeconv.errors import ConfigError, InputError
from snpdeconv.finemapping import (
    ColumnSpectra,
    ExtraColumns,
    Settings,
    SingleEffectsFit,
    fit_one_against_rest,
    fit_single_effects,
    joint_pip,
)
from snpdeconv.finemapping.interactions import InteractionEffects, centred_squares, interaction_columns
from snpdeconv.finemapping.likelihoods import Background
from snpdeconv.finemapping.susie import LOGISTIC_VARIANCE, snp_weights
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.terms import NUM_CODES, Terms
from snpdeconv.stats.common import covariate_basis
from snpdeconv.stats.mixed_model import Kinship, background_test, kinship_matrix

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
GivenKinship = ColumnSpectra | Literal["auto", "genotypes"] | None


@dataclass(frozen=True)
class PairColumns:
    """Columns of pairs, with what makes them of genotypes."""

    pairs: NDArray[np.int64]  # (P, 2) variants
    num_tested: int  # pairs that they were chosen from
    values: NDArray[np.float32]  # (N, P) float32 of the samples of the fit
    mean: Floats  # (V,) mean dosage
    inverse_sd: Floats  # (V,) of the dosage
    offset: Floats  # (P,) mean product of the standardised dosages
    along: Floats  # (P, 2) regression of the product on its members
    scale: Floats  # (P,) inverse standard deviation of what that leaves

    @classmethod
    def of(
        cls, genotypes: PackedGenotypes, pairs: NDArray[np.int64], *, num_tested: int, device: str
    ) -> PairColumns:
        """Makes them over all samples of the genotypes."""
        dosages = Dosages.of(genotypes, device=device)
        made = products(dosages, pairs)
        offset, on_first, on_second, scale = (
            values.double().cpu().numpy()
            for values in (made.offset, made.on_first, made.on_second, made.inverse_sd)
        )
        return cls(
            pairs=pairs,
            num_tested=num_tested,
            values=made.values.cpu().numpy(),
            mean=dosages.mean,
            inverse_sd=dosages.inverse_sd,
            offset=offset,
            along=np.column_stack([on_first, on_second]),
            scale=scale,
        )

    @property
    def extra(self) -> ExtraColumns:
        """As they join a fit: all pairs that were tested share one weight."""
        each = PAIRS_WEIGHT / max(1, self.num_tested)
        return ExtraColumns(self.values, self.pairs, np.full(len(self.pairs), each))


def fitted_terms(
    fits: tuple[SingleEffectsFit, ...], pairs: PairColumns | None, *, num_covariates: int
) -> Terms:
    """Terms of which the linear predictors of O fits are made; the fits, and `pairs`, share columns.

    A SNP has a term of its standardised dosage and one of its dominance, a pair one of the product of both
    standardised dosages; what the dosages explain of the product is taken out of their own terms and of the
    intercept. Interactions and the squares of their covariates, which have the last columns, have none.
    """
    scaling = fits[0].scaling
    dosage, het, extra = (np.stack(parts) for parts in zip(*map(_standardised, fits), strict=True))
    intercept = np.array([fit.intercept for fit in fits])
    if pairs is None:
        paired, product = np.empty((0, 2), dtype=np.int64), np.empty((len(fits), 0))
        z_value = np.empty((0, 2, NUM_CODES))
    else:
        kept = np.flatnonzero(extra[:, : len(pairs.pairs)].any(axis=0))
        paired, product = pairs.pairs[kept], extra[:, kept] * pairs.scale[kept]
        intercept = intercept - product @ pairs.offset[kept]
        for side, variant in enumerate(paired.T):
            # The pair's dosages are in another unit than those of single SNPs where there are covariates.
            unit = pairs.inverse_sd[variant] * scaling.dosage_sd[variant]
            np.add.at(dosage.T, variant, -(product * pairs.along[kept, side] * unit).T)
        z_value = _values(0, 1, mean=pairs.mean[paired], het_mean=0.0, scale=pairs.inverse_sd[paired])
    own = np.flatnonzero(dosage.any(axis=0))
    dominant = np.flatnonzero(het.any(axis=0))
    mean, het_mean = scaling.dosage_mean, scaling.het_mean
    first_value = [
        _values(0, 1, mean=mean[own], het_mean=0.0, scale=1 / scaling.dosage_sd[own]),
        _values(
            1,
            -scaling.het_slope[dominant],
            mean=mean[dominant],
            het_mean=het_mean[dominant],
            scale=1 / scaling.het_sd[dominant],
        ),
    ]
    num_single = len(own) + len(dominant)
    return Terms(
        first=np.concatenate([own, dominant, paired[:, 0]]),
        second=np.concatenate([np.full(num_single, -1), paired[:, 1]]),
        first_value=np.concatenate([*first_value, z_value[:, 0]]),
        second_value=np.concatenate([np.ones((num_single, NUM_CODES)), z_value[:, 1]]),
        weight=np.hstack([dosage[:, own], het[:, dominant], product]),
        intercept=intercept,
        covariate_weight=np.stack([fit.covariate_coefficients[:num_covariates] for fit in fits]),
    )


def pair_part(fit: SingleEffectsFit, pairs: PairColumns) -> Floats:
    """(N,) what the pairs contribute to the linear predictor of the samples of the fit."""
    return np.asarray(pairs.values @ _standardised(fit)[2][: len(pairs.pairs)], dtype=np.float64)


def _standardised(fit: SingleEffectsFit) -> tuple[Floats, Floats, Floats]:
    """Posterior mean weight of dosage (V,) and dominance (V,), standardised, and of extra values (E,)."""
    num = len(fit.pip)
    size = 2 * num + len(fit.scaling.extra_sd)
    total = np.zeros(size)
    for effect in fit.effects:
        total[effect.columns] += effect.alpha * effect.mean
    return total[:num], total[num : 2 * num], total[2 * num :] / fit.scaling.extra_sd


def _values(
    of_het: float, of_dosage: float | Floats, *, mean: Floats, het_mean: float | Floats, scale: Floats
) -> Floats:
    """(..., 4) values of the codes of a SNP's column; a missing genotype is at the mean, 0."""
    codes = np.arange(NUM_CODES)
    heterozygote, slope = (codes == 1) * of_het, np.asarray(of_dosage)[..., None]
    value = heterozygote - np.asarray(het_mean)[..., None] + slope * (codes - mean[..., None])
    value[..., MISSING] = 0.0
    return np.asarray(value * scale[..., None])


# Prior weight that a SNP of a sure pair gains, those of all dosages being 1.
FROM_PAIRS = 0.05


def inherited(fit: SingleEffectsFit, pairs: PairColumns) -> NDArray[np.float64]:
    """(V,) prior weights to add: a SNP that acts in a pair likelier acts by itself as well.

    Among SNPs in LD, that a pair rests on one of them says which of them another signal nearby is of. Single
    SNPs pass nothing on to pairs.
    """
    paired = fit.column_pip[2 * len(fit.pip) :][: len(pairs.pairs)]
    missed = np.ones(len(fit.pip))
    for variants in pairs.pairs.T:
        np.multiply.at(missed, variants, 1 - paired)
    return np.asarray(FROM_PAIRS * (1 - missed))


# Men have one copy, or nobody has two: a heterozygote tells the sex, or is an error.
HAPLOID = ("X", "Y", "MT")
# Prior weight of all pairs tested together; the dosages of all SNPs together weigh 1.
PAIRS_WEIGHT = 1.0
# A pair whose Bayes factor is below this share of what its prior asks for cannot act.
WEAK = 0.3
# Share of the residual's variance by which single SNPs have to give way to pairs for a second scan.
GIVEN_WAY = 0.05
# Samples up to which a kinship is decomposed without being asked for, and largest p-value of the background
# at which it is.
MOST_EXACT = 10_000
BACKGROUND_P = 0.01
# Least share of the variance for which a background is fitted: a smaller one is as well the trace of effects
# too weak to be found, and leads nobody astray.
LEAST_HERITABILITY = 0.05
# Relatedness from which on it is looked for although effects seem to leave nothing of it.
CLOSE = 1.0


@dataclass(frozen=True)
class PairEffects:
    """Pairs of SNPs that joined the last fit, most probable first."""

    first: NDArray[np.int64]  # (P,) variant, smaller than `second`
    second: NDArray[np.int64]  # (P,) variant
    # (P,) posterior mean coefficient of the standardised product, in the trait's unit or log odds, 0 where
    # the pair does not act
    effect: Floats
    pip: Floats  # (P,) probability that the pair acts
    neg_log10_p: Floats  # (P,) -log10 p-value of the exact test, not corrected for the number of pairs
    q_value: Floats  # (P,) false discovery rate of the clump of linked pairs that this one belongs to

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Deconvolution:
    """A trait taken apart."""

    kind: TraitKind
    fits: tuple[SingleEffectsFit, ...]  # one, or one a class, that class against the rest
    pairs: PairEffects
    interactions: InteractionEffects
    pip: Floats  # (V,) probability that a SNP takes part in any effect
    # (V,) posterior mean effect of a standard deviation of a SNP's dosage, given that it acts; NaN where no
    # effect may rest on it
    effect: Floats
    # (V,) which of `fits` a SNP most probably acts in, which is the one that `effect` is of
    strongest: NDArray[np.int64]
    # (V,) orders all SNPs: `pip`, and the evidence for a further effect where that says nothing
    score: Floats
    terms: Terms  # what predicts the trait of other samples, interactions with covariates left out
    fitted: Floats  # (N, O) linear predictor of the samples of the fit, less the background

    @property
    def background(self) -> Background | None:
        """What a kinship explains beside the effects."""
        return self.fits[0].background


def deconvolve(
    genotypes: PackedGenotypes,
    target: ArrayLike,
    *,
    kind: TraitKind,
    chrom: NDArray[np.object_],
    position_bp: NDArray[np.int64],
    rows: NDArray[np.integer] | None = None,
    covariates: ArrayLike | None = None,
    prior_weights: ArrayLike | None = None,
    pairs: bool = True,
    interactions: Sequence[int] = (),
    kinship: GivenKinship = None,
    settings: Settings | None = None,
) -> Deconvolution:
    """Takes a trait apart into effects of single SNPs, their dominance, pairs and interactions.

    Dosages and dominance columns are fitted first; all pairs are scanned on what they leave, and the pairs
    found join the fit. Where single SNPs that had stood for pairs gave way to them, the scan is made once
    more on what dosages and dominance columns alone now leave, and its pairs replace the first ones. In a
    last fit the prior of the SNPs of pairs is larger (`inherited`).

    `interactions` are the columns of the covariates that may change what a SNP does. Their products with all
    SNPs are tested on what is left before the last fit, and those that pass join it; a robust test that sees
    less than the likelihood, as where the residual's variance goes with the covariate, lowers their prior by
    as much. The square of each such covariate that is no indicator is a covariate too.

    `target` (N,) and covariates (N, C; no intercept) are of the samples in `rows`, all by default; classes
    are indices, each fitted against the rest, without pairs. SNPs of X, Y and MT have no dominance.
    `prior_weights` (V,) are relative.

    Beside a `kinship` of the samples a quantitative trait has a polygenic background (`fit_single_effects`).
    "genotypes" makes it of them; "auto" as well, but only where a score test finds a background in what a fit
    without leaves.
    """
    cohort = genotypes if rows is None else genotypes.take(rows=rows)
    settings = settings or Settings()
    if len(chrom) != cohort.num_variants:
        raise InputError(
            f"{len(chrom)} values for {cohort.num_variants} variants",
            where="chrom",
            hint="give one value a variant",
        )
    given = np.empty((cohort.num_samples, 0)) if covariates is None else np.asarray(covariates)
    if kind == "multiclass":
        if interactions:
            raise ConfigError(
                "interactions need a quantitative or binary trait",
                where="interactions",
                hint="leave them out, or rank one class against the rest",
            )
        fits = fit_one_against_rest(
            cohort,
            target,
            covariates=covariates,
            prior_weights=prior_weights,
            without_dominance=np.isin(chrom, HAPLOID),
            settings=settings,
        )
        return _joined(kind, fits, num_covariates=given.shape[1])
    study = _Study(
        cohort=cohort,
        truth=np.asarray(target, dtype=np.float64),
        kind=kind,
        chrom=chrom,
        position_bp=position_bp,
        covariates=np.hstack([given, centred_squares(given[:, list(interactions)])]),
        prior_weights=snp_weights(prior_weights, num_variants=cohort.num_variants),
        settings=settings,
    )
    if kind == "quantitative":
        study = study.beside(kinship)
        pairs = pairs and (study.kinship is None or settings.pairs_beside_background)
    if not (pairs or interactions):
        return _joined(kind, (study.fit(None),), num_covariates=given.shape[1])
    first = study.fit(None, refine=False)
    linear, study = first.fitted, replace(study, background=first.background)
    found, columns, weights = None, None, None
    if pairs:
        found, columns, weights, linear = study.find_pairs(linear)
    scan = study.scan_interactions(linear, given[:, list(interactions)]) if interactions else None
    fit = study.fit(columns, scan, prior_weights=weights)
    return _joined(
        kind,
        (fit,),
        num_covariates=given.shape[1],
        columns=columns,
        found=found,
        interactions=None if scan is None else InteractionEffects.of(fit, scan, covariates=interactions),
    )


@dataclass(frozen=True)
class _Study:
    cohort: PackedGenotypes
    truth: Floats
    kind: Literal["quantitative", "binary"]
    chrom: NDArray[np.object_]
    position_bp: NDArray[np.int64]
    covariates: Floats
    prior_weights: Floats
    settings: Settings
    kinship: ColumnSpectra | None = None
    background: Background | None = None  # of a fit of single SNPs

    def beside(self, kinship: GivenKinship) -> _Study:
        """The study beside a kinship, as `deconvolve` takes it."""
        if kinship is None or isinstance(kinship, ColumnSpectra):
            return replace(self, kinship=kinship)
        if kinship == "auto":
            left = np.column_stack([self.truth - self.fit(None, refine=False).fitted, self.truth])
            basis = covariate_basis(self.covariates, num_samples=len(left))
            found = background_test(self.cohort, left, basis, device=self.settings.device)
            p, p_of_trait = found.p_values
            # Among close relatives effects of single SNPs can pass for all that families share.
            passed = p <= BACKGROUND_P or (p_of_trait <= BACKGROUND_P and found.relatedness > CLOSE)
            if not passed:
                return self
            if self.cohort.num_samples > MOST_EXACT:
                logger.warning(
                    "the SNPs together explain more than single effects do (p = %.2g), as of relatives or of "
                    "a polygenic trait; of more than %d samples no background is fitted unless asked for",
                    min(p, p_of_trait), MOST_EXACT,
                )  # fmt: skip
                return self
        decomposed = Kinship.of(kinship_matrix(self.cohort, device=self.settings.device))
        beside = replace(self, kinship=ColumnSpectra(decomposed))
        if kinship == "auto":
            background = beside.fit(None, refine=False).background
            # What single effects without a background had left may be theirs after all.
            if background is None or not background.components.is_there(BACKGROUND_P, LEAST_HERITABILITY):
                return self
        return beside

    def left(self, linear: Floats) -> tuple[Floats, Floats | None]:
        """What a linear predictor leaves of the trait, and of a binary one its probabilities.

        Beside a background that is V⁻¹ times the residual, so that relatives do not count twice.
        """
        if self.kind == "binary":
            mean: Floats = special.expit(linear)
            return self.truth - mean, mean
        residual = self.truth - linear
        return residual if self.background is None else self.background.solve(residual), None

    def fit(
        self,
        columns: PairColumns | None,
        interactions: CovariateScan | None = None,
        *,
        prior_weights: Floats | None = None,
        refine: bool = True,
    ) -> SingleEffectsFit:
        """Fits all columns; only the last fit has to look for a better optimum than the first one."""
        weights = self.prior_weights if prior_weights is None else prior_weights
        parts = [] if columns is None else [columns.extra]
        parts += [] if interactions is None else [interaction_columns(interactions)]
        extra = None
        if parts:
            extra = ExtraColumns(
                values=np.hstack([part.values for part in parts]),
                variants=np.concatenate([part.variants for part in parts]),
                # The fit takes a SNP's weights relative to the sum of their dosages.
                weight=np.concatenate([part.weight for part in parts]) / weights.sum(),
            )
        return fit_single_effects(
            self.cohort,
            self.truth,
            kind=self.kind,
            covariates=self.covariates,
            prior_weights=weights,
            without_dominance=np.isin(self.chrom, HAPLOID),
            extra=extra,
            kinship=self.kinship,
            settings=replace(self.settings, refine=refine and self.settings.refine),
        )

    def scan(self, linear: Floats) -> tuple[PairScan, PairColumns]:
        """Scans what a linear predictor without pairs leaves of the trait."""
        residual, mean = self.left(linear)
        found = scan_pairs(
            self.cohort,
            residual,
            chrom=self.chrom,
            position_bp=self.position_bp,
            mean=mean,
            covariates=self.covariates,
            device=self.settings.device,
        )
        columns = PairColumns.of(
            self.cohort, found.pairs, num_tested=found.num_tested, device=self.settings.device
        )
        return found, columns

    def find_pairs(self, single: Floats) -> tuple[PairScan, PairColumns, Floats | None, Floats]:
        """Pairs beside what single SNPs predict; the SNPs' prior weights beside them; what all predict."""
        found, columns = self.scan(single)
        # Pairs too weak to act in any fit need none to tell.
        if (found.t**2).max(initial=0.0) / 2 <= np.log(WEAK * max(1, found.num_tested) / PAIRS_WEIGHT):
            return found, columns, None, single
        earlier = self.fit(columns, refine=False)
        left = earlier.fitted - pair_part(earlier, columns)
        if np.var(left - single) > GIVEN_WAY * self.noise(left):
            found, columns = self.scan(left)
            earlier = self.fit(columns, refine=False)
        weights = self.prior_weights + inherited(earlier, columns) * (self.prior_weights > 0)
        return found, columns, weights, earlier.fitted

    def scan_interactions(self, linear: Floats, modifiers: NDArray[np.generic]) -> CovariateScan:
        """Tests products with covariates (N, K) in what a linear predictor without them leaves."""
        residual, mean = self.left(linear)
        return scan_covariates(
            self.cohort,
            residual,
            modifiers,
            covariates=self.covariates,
            mean=mean,
            device=self.settings.device,
        )

    def noise(self, linear: Floats) -> float:
        """Variance that a linear predictor leaves, on its own scale."""
        return LOGISTIC_VARIANCE if self.kind == "binary" else float(np.var(self.truth - linear))


def _joined(
    kind: TraitKind,
    fits: tuple[SingleEffectsFit, ...],
    *,
    num_covariates: int,
    columns: PairColumns | None = None,
    found: PairScan | None = None,
    interactions: InteractionEffects | None = None,
) -> Deconvolution:
    pip = joint_pip(fits)
    strongest = np.argmax([fit.pip for fit in fits], axis=0)
    effects = np.array([fit.column_effect[: len(pip)] for fit in fits])
    further = 1 - np.prod([1 - fit.next_effect for fit in fits], axis=0)
    return Deconvolution(
        kind=kind,
        fits=fits,
        pairs=_pair_effects(fits[0], columns, found),
        interactions=InteractionEffects.none() if interactions is None else interactions,
        pip=pip,
        effect=effects[strongest, np.arange(len(pip))],
        strongest=strongest,
        score=1 - (1 - pip) * (1 - 0.5 * further),
        terms=fitted_terms(fits, columns, num_covariates=num_covariates),
        fitted=np.column_stack([fit.fitted for fit in fits]),
    )


def _pair_effects(fit: SingleEffectsFit, columns: PairColumns | None, found: PairScan | None) -> PairEffects:
    if columns is None or found is None:
        nothing, none = np.empty(0), np.empty(0, dtype=np.int64)
        return PairEffects(none, none, nothing, nothing, nothing, nothing)
    first = 2 * len(fit.pip)
    of_pairs = slice(first, first + len(found))
    pip = fit.column_pip[of_pairs]
    of_clump = found.q_value[found.leads]
    order = np.lexsort((-found.neg_log10_p, -pip))
    return PairEffects(
        first=found.i[order],
        second=found.j[order],
        effect=fit.column_effect[of_pairs][order],
        pip=pip[order],
        neg_log10_p=found.neg_log10_p[order],
        q_value=of_clump[found.clump][order],
    )

"""Interactions of SNPs with covariates: a robust test of every product, and the products that may join a fit.

Owns the products, their test and which of them show one signal. Knows no posterior: that is the fit's that
takes them. Shapes: N samples, V variants, v variants of a batch, K modifiers (the covariates that may change
what a SNP does), M products that passed, E products kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from snpdeconv.epistasis.dosages import COLLINEAR, Dosages, batches
from snpdeconv.epistasis.test import Null
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.stats import common
from snpdeconv.stats.common import binary_score_tail

Floats = NDArray[np.float64]

# Products that are held at once, and their elements: 256 MiB.
MOST_PASSED = 400
PASSED_ELEMENTS = 2**26
# The first look takes tails for normal: what falls short by this many deviations is looked at as well.
SCREEN_MARGIN = 0.5
# Products that share this much of their variance with a stronger one are that one's signal.
LINKED_R2 = 0.1
# Looks at all products, each at what the signals of those before leave.
MOST_SCANS = 4


@dataclass(frozen=True)
class CovariateScan:
    """Products of a SNP and a covariate that may act, signal by signal, the strongest of each first."""

    variant: NDArray[np.int64]  # (E,)
    modifier: NDArray[np.int64]  # (E,) which of the K modifiers
    # (E,) normal deviate of the robust test given the signals before, with the sign of the effect
    statistic: Floats
    neg_log10_p: Floats  # (E,) -log10 of its two-sided p-value, not corrected for the number of products
    # (E,) natural logarithm of what the robust test leaves of the evidence that a likelihood of equal
    # variances sees, with the signals before or without; at most 0
    log_discount: Floats
    signal: NDArray[np.int64]  # (E,) number of the signal
    num_tested: NDArray[np.int64]  # (K,) products that were tested
    values: NDArray[np.float32]  # (N, E) the products, without what covariates and their SNP explain

    def __len__(self) -> int:
        return len(self.variant)

    @property
    def leads(self) -> NDArray[np.bool_]:
        """(E,) whether the product is the strongest of its signal."""
        return np.asarray(np.diff(self.signal, prepend=-1) > 0)

    @property
    def q_value(self) -> Floats:
        """(E,) false discovery rate of each signal among all products (Benjamini and Hochberg 1995)."""
        lead = self.neg_log10_p[self.leads]
        order = np.argsort(-lead, kind="stable")
        rate = 10.0 ** -lead[order] * self.num_tested.sum() / np.arange(1, len(order) + 1)
        q = np.empty(len(order))
        q[order] = np.minimum.accumulate(np.minimum(rate, 1.0)[::-1])[::-1]
        return q[self.signal]


def scan_covariates(
    genotypes: PackedGenotypes,
    residual: ArrayLike,
    modifiers: ArrayLike,
    *,
    covariates: ArrayLike,
    mean: ArrayLike | None = None,
    expected_false: float = 2.0,
    device: str | torch.device = "cpu",
) -> CovariateScan:
    """Tests the product of every dosage with every modifier in what a fit without products leaves of a trait.

    A product is that of a standardised dosage and a modifier less its mean, without what covariates and the
    SNP's dosage and dominance explain of it. With such columns x and the residual r, T = Σ x r.

    Quantitative: each sample brings its own variance, (x r)², so that a residual that spreads more where the
    modifier is large, or with the genotype, is no interaction. The p-value is that of T under random signs of
    all x r (the wild bootstrap; Davidson and Flachaire 2008, J. Econometrics 146:162), by a saddlepoint, and
    so holds for any variances and few carriers where residuals are symmetric. r is scaled for its leverage
    among the covariates (HC2; MacKinnon and White 1985). Binary: a score test with saddlepoint tail, its
    deviate divided by how far r spreads beyond what the probabilities say along this product.

    Products up to the p-value that `expected_false` of one modifier's would reach by chance are kept. The
    strongest makes a signal with all that share variance with it, and the others are tested again in what it
    leaves. Each pass takes time with N times V times K.

    `residual` (N,) is of all samples; of a binary trait y - `mean`, its fitted probabilities (N,). Covariates
    (N, any number; no intercept) should hold the modifiers (N, K) and of those that are no indicators the
    squares, as what a modifier does by itself, straight or bent, must not show as an interaction.
    """
    dosages = Dosages.of(genotypes, device=device)
    null = Null.of(residual, covariates=covariates, mean=mean, device=dosages.device)
    given = np.asarray(modifiers, dtype=np.float64)
    scan = _Scan(
        dosages=dosages,
        modifiers=torch.as_tensor((given - given.mean(axis=0)).astype(np.float32), device=dosages.device),
        expected_false=expected_false,
        most=int(np.clip(PASSED_ELEMENTS // dosages.num_samples, 1, MOST_PASSED)),
    )
    signals: list[_Passed] = []
    start = null
    for _ in range(MOST_SCANS):
        statistic = scan.screen(null)
        num_tested = (~statistic.isnan()).sum(dim=1)
        needed = scan.needed(num_tested)
        passed, is_cut = scan.passed(statistic, null, needed=needed)
        # A fit in which the signals before do not act sees all the evidence that there was without them.
        found, null = passed.tested(start).signals(null, needed=needed)
        signals += found
        if not found or not is_cut:
            break
    kept = _Passed.joined(signals, num_samples=dosages.num_samples)
    return CovariateScan(
        variant=kept.variant,
        modifier=kept.modifier,
        statistic=kept.statistic,
        neg_log10_p=kept.neg_log10_p,
        log_discount=kept.log_discount,
        signal=np.repeat(np.arange(len(signals)), [len(one.variant) for one in signals]),
        num_tested=num_tested.cpu().numpy(),
        values=kept.values.cpu().numpy(),
    )


@dataclass(frozen=True)
class _Scan:
    dosages: Dosages
    modifiers: Tensor  # (N, K) centred
    expected_false: float
    most: int  # products that may pass in one scan

    def screen(self, null: Null) -> Tensor:
        """(K, V) deviate of every product, as if its tail were normal; NaN where nothing is left of it."""
        num_variants = self.dosages.genotypes.num_variants
        rows = []
        for batch in batches(num_variants, num_samples=4 * self.dosages.num_samples):
            variants = np.arange(num_variants)[batch]
            single = self._single(variants, null)
            each = (self._product(*single, e[:, None], null) for e in self.modifiers.unbind(1))
            rows.append(torch.stack([_deviate(product, null) for product in each]))
        return torch.cat(rows, dim=1)

    def needed(self, num_tested: Tensor) -> Floats:
        """(K,) -log10 p that a product of each modifier has to reach."""
        return np.asarray(np.log10(np.maximum(1.0, num_tested.cpu().numpy() / self.expected_false)))

    def passed(self, statistic: Tensor, null: Null, *, needed: Floats) -> tuple[_Passed, bool]:
        """The strongest products that may reach what is needed, and whether some are not among them."""
        least = torch.from_numpy(common.deviate(needed) - SCREEN_MARGIN).to(statistic)
        score = statistic.abs().nan_to_num(0.0) - least.clamp(min=0.0)[:, None]
        modifier, variant = torch.nonzero(score > 0, as_tuple=True)
        strongest = torch.argsort(-score[modifier, variant], stable=True)[: self.most]
        chosen_modifier, chosen = modifier[strongest].cpu().numpy(), variant[strongest].cpu().numpy()
        parts = [self.modifiers[:, :0]]
        for batch in batches(len(chosen), num_samples=4 * self.dosages.num_samples):
            e = self.modifiers[:, torch.from_numpy(chosen_modifier[batch]).to(self.modifiers.device)]
            parts.append(self._product(*self._single(chosen[batch], null), e, null))
        passed = _Passed.untested(chosen, chosen_modifier, torch.cat(parts, dim=1))
        return passed, len(modifier) > self.most

    def _single(self, variants: NDArray[np.int64], null: Null) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised dosages (N, v), and what covariates leave of them, and of dominance beside them."""
        codes = self.dosages.codes(variants)
        raw = self.dosages.standardise(codes, variants)
        dosage = null.project(raw)
        het = null.project(self.dosages.heterozygotes(codes))
        dominance = _without(het, dosage, null)
        # Where homozygotes of one allele are all there is, rounding is all that is left.
        varies = null.weight @ dominance.square() > COLLINEAR * (null.weight @ het.square())
        return raw, dosage, torch.where(varies, dominance, 0.0)

    @staticmethod
    def _product(raw: Tensor, dosage: Tensor, dominance: Tensor, e: Tensor, null: Null) -> Tensor:
        """(N, v) products with a modifier (N, 1 or v) of mean square 1 or, where nothing is left, 0."""
        product = raw * e
        size = null.weight @ product.square()
        product = null.project(product)
        product = _without(_without(product, dosage, null), dominance, null)
        left = null.weight @ product.square()
        varies = left > COLLINEAR * size
        scale = torch.where(varies, (null.weight.sum() / torch.where(varies, left, 1.0)).sqrt(), 0.0)
        return product * scale


@dataclass(frozen=True)
class _Passed:
    """Some products; the fields are as `CovariateScan` has them."""

    variant: NDArray[np.int64]
    modifier: NDArray[np.int64]
    values: Tensor  # (N, M)
    statistic: Floats
    neg_log10_p: Floats
    log_discount: Floats

    @classmethod
    def untested(cls, variant: NDArray[np.int64], modifier: NDArray[np.int64], values: Tensor) -> _Passed:
        nothing = np.zeros(len(variant))
        return cls(variant, modifier, values, nothing, nothing, nothing)

    @classmethod
    def joined(cls, parts: list[_Passed], *, num_samples: int) -> _Passed:
        none = np.empty(0, dtype=np.int64)
        parts = [cls.untested(none, none, torch.empty(num_samples, 0)), *parts]
        return cls(
            values=torch.cat([part.values.cpu() for part in parts], dim=1),
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in ("variant", "modifier", "statistic", "neg_log10_p", "log_discount")
            },
        )

    def take(self, index: NDArray[np.int64]) -> _Passed:
        return _Passed(
            self.variant[index],
            self.modifier[index],
            self.values[:, torch.from_numpy(index).to(self.values.device)],
            self.statistic[index],
            self.neg_log10_p[index],
            self.log_discount[index],
        )

    def signals(self, null: Null, *, needed: Floats) -> tuple[list[_Passed], Null]:
        """Signals from the strongest down, each tested beside those before, and what all of them leave."""
        found, waiting = [], self
        while len(waiting.variant):
            tested = waiting.tested(null)
            passes = tested.neg_log10_p >= needed[tested.modifier]
            if not passes.any():
                break
            lead = int(np.argmax(np.where(passes, tested.neg_log10_p, -np.inf)))
            x = tested.values[:, lead]
            product = (null.weight * x) @ tested.values
            size = null.weight @ tested.values.square()
            linked = (product.square() >= LINKED_R2 * size[lead] * size).cpu().numpy()
            members = np.flatnonzero(linked & passes)
            found.append(tested.take(members[np.argsort(-tested.neg_log10_p[members], kind="stable")]))
            effect = (x @ null.residual) / size[lead]
            null = replace(null, residual=null.residual - effect * null.weight * x)
            waiting = tested.take(np.flatnonzero(~linked))
        return found, null

    def tested(self, null: Null) -> _Passed:
        """Tests in what a null leaves; the discount is the largest of all tests so far."""
        score = self.values.T @ null.residual
        size = null.weight @ self.values.square()
        if null.mean is None:
            signs = 2 * self.values * _leverage_scaled(null)[:, None]
            neg_log10_p = binary_score_tail(signs, score, torch.full_like(null.weight, 0.5))
            df = len(null.residual) - null.basis.shape[1]
            plain = score / (null.residual.square().sum() / df * size).clamp(min=1e-30).sqrt()
            deviate = common.deviate(neg_log10_p.cpu().numpy())
        else:
            neg_log10_p = binary_score_tail(self.values, score, null.mean)
            plain = score / size.clamp(min=1e-30).sqrt()
            deviate = common.deviate(neg_log10_p.cpu().numpy()) / _dispersion(self.values, null).cpu().numpy()
        return replace(
            self,
            statistic=deviate * np.sign(score.cpu().numpy()),
            neg_log10_p=common.normal_tail(deviate),
            log_discount=np.minimum(self.log_discount, (deviate**2 - plain.double().cpu().numpy() ** 2) / 2),
        )


def _without(columns: Tensor, others: Tensor, null: Null) -> Tensor:
    """Columns (N, v) without what others, one each, explain of them."""
    size = null.weight @ others.square()
    along = null.weight @ (columns * others)
    return columns - others * torch.where(size > 0, along / size.clamp(min=1e-30), 0.0)


def _leverage_scaled(null: Null) -> Tensor:
    """(N,) residuals of a quantitative trait as large as they were before the covariates fitted them."""
    leverage = null.basis.square().sum(1)
    return null.residual / (1 - leverage).clamp(min=COLLINEAR).sqrt()


def _dispersion(x: Tensor, null: Null) -> Tensor:
    """(v,) by what factor, at least 1, a binary trait's scores spread beyond what its probabilities say."""
    seen, expected = null.residual.square() @ x.square(), null.weight @ x.square()
    return (seen / expected.clamp(min=1e-30)).clamp(min=1.0).sqrt()


def _deviate(x: Tensor, null: Null) -> Tensor:
    """(v,) T over its robust deviation, of columns (N, v); NaN of those that are 0."""
    score = null.residual @ x
    if null.mean is None:
        deviation = (_leverage_scaled(null).square() @ x.square()).sqrt()
    else:
        deviation = (null.weight @ x.square()).sqrt() * _dispersion(x, null)
    return score / torch.where(deviation > 0, deviation, torch.nan)

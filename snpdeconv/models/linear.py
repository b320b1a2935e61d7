"""The linear part of a network: genomic ridge regression in closed form, a sparse fit beside it, and the
weights of both by what they predict of samples left out.

Needs the training samples only, as one tensor. Shape suffixes: N samples, S slots, C channels, O outputs, Q
covariates with the intercept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from snpdeconv.console import track
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.encoding import dosage_weights
from snpdeconv.genetics.terms import Terms
from snpdeconv.models.layers import SparsePart
from snpdeconv.models.model import InterpretableSNPModel

logger = logging.getLogger(__name__)


Floats = NDArray[np.float64]


CHUNK_SLOTS = 4096
# Ratios of noise to genetic variance that are tried; 1e-4 is all but interpolation, 1e3 all but the mean.
PENALTIES = np.geomspace(1e-4, 1e3, 22)


@dataclass(frozen=True)
class SparseScores:
    """A sparse fit, with what it says of the samples that it was fitted on and (out of fold) of others."""

    terms: Terms  # of the fit to all samples; slots are the model's
    in_sample: Floats  # (N, O) what the terms predict: a quantity, or log odds
    out_of_fold: Floats  # (N, O) what such fits to other samples predict


@dataclass(frozen=True)
class LinearFit:
    """What the fit found."""

    penalty: float  # chosen ratio of noise to genetic variance
    loo_r2: float  # mean over outputs (classes' indicators); beside a sparse part, of what that leaves
    num_samples: int  # that the ridge regression was fitted on
    sparse_share: float  # mean weight of the sparse part in the sum; 0 without one
    # (N, O) to be added to the model's logits of each sample given, so that the linear part is a prediction
    # of samples left out: beside the fit itself a network would find nothing left to learn.
    offset: Tensor


@torch.no_grad()
def fit_linear(
    model: InterpretableSNPModel,
    genotypes: Tensor,
    target: Tensor,
    covariates: Tensor | None = None,
    *,
    kind: TraitKind,
    sparse: SparseScores | None = None,
    max_samples: int = 10_000,
    seed: int = 0,
) -> LinearFit:
    """Fills the wide path of a model with a ridge regression on all SNPs (GBLUP; Meuwissen et al. 2001).

    The penalty is the one with the least leave-one-out error (exact for a linear smoother: residual / (1 -
    leverage)). For classes the regression is on class indicators, and a logistic regression turns its
    leave-one-out scores into logits: scores of the samples that were fitted on are too good, the more so the
    smaller their class, and a calibration on them misplaces rare classes.

    Beside a sparse fit the ridge regression is on what that leaves of samples it has not seen: few SNPs with
    strong effects (and pairs) for the one, many with weak effects for the other, and whatever structure the
    sample has. Both are stacked by what they predict of samples left out, and the weights folded into them.

    The model's attention starts at each SNP's share of the variance that both explain. Of more than
    ``max_samples`` so many are drawn: the work grows with N cubed, memory with N squared.
    """
    everyone = len(genotypes)
    chosen = torch.arange(everyone)
    if everyone > max_samples:
        chosen = torch.randperm(len(genotypes), generator=torch.Generator().manual_seed(seed))[:max_samples]
        logger.info("linear fit on %d of %d training samples", max_samples, len(genotypes))
        genotypes, target = genotypes[chosen], target[chosen]
        covariates = None if covariates is None else covariates[chosen]
    device = model.wide.weight.device
    out_of_fold = None if sparse is None else sparse.out_of_fold[chosen.numpy()]
    response = _response(target, kind, model.num_outputs, out_of_fold).to(device)
    fixed = torch.ones(len(response), 1, dtype=torch.float64, device=device)
    if model.num_covariates and covariates is not None:
        fixed = torch.cat([fixed, covariates.to(device, torch.float64)], dim=1)
    ridge = _ridge(_relationship(model, genotypes), response, fixed, with_fixed=kind == "quantitative")
    stacked = _stack(ridge, out_of_fold, target, fixed[:, 1:], kind)
    slope = torch.from_numpy(stacked.slopes[-1]).to(device)
    weight = torch.cat([z.double().t() @ ridge.dual for z in _dosage_chunks(model, genotypes)]) @ slope.t()
    weight /= _num_real(model)
    _fill_wide(model, weight)
    fixed_effects = (ridge.fixed_effects @ slope.t()).cpu().numpy().T
    fixed_effects += np.column_stack([stacked.intercept, stacked.covariate_slope])
    share = weight.square().sum(1)
    offset = torch.zeros(everyone, model.num_outputs, dtype=torch.float64)
    offset[chosen] = ((ridge.loo - ridge.fitted) @ slope.t()).cpu()
    if sparse is not None and stacked.slopes[0].any():
        terms = sparse.terms.scaled(stacked.slopes[0])
        model.carry(SparsePart.of(terms))
        fixed_effects += np.column_stack([terms.intercept, terms.covariate_weight])
        offset += torch.from_numpy((sparse.out_of_fold - sparse.in_sample) @ stacked.slopes[0].T)
        variance = terms.variance_of_variants(model.encoder.allele_frequency.double().cpu().numpy())
        share += torch.from_numpy(variance).to(device)
    model.start_attention(share.float())
    model.wide.bias.copy_(torch.from_numpy(fixed_effects[:, 0]))
    if model.wide.covariate_weight is not None:
        model.wide.covariate_weight.copy_(torch.from_numpy(fixed_effects[:, 1:]))
    sparse_share = 0.0 if sparse is None else float(np.diag(stacked.slopes[0]).mean())
    logger.info(
        "linear fit: penalty %.3g, leave-one-out R2 %.3f, %d samples%s",
        ridge.penalty,
        ridge.loo_r2,
        len(response),
        "" if sparse is None else f", beside {len(sparse.terms)} sparse terms of weight {sparse_share:.2f}",
    )
    return LinearFit(ridge.penalty, ridge.loo_r2, len(response), sparse_share, offset.float())


def _fill_wide(model: InterpretableSNPModel, weight: Tensor) -> None:
    """Weights (S, O) of standardised dosages as weights of the encoding's channels."""
    functional = dosage_weights(model.encoder.allele_frequency, model.encoder.encoding_dim)
    full = functional * weight.t().float().unsqueeze(1)
    full = torch.nn.functional.pad(full, (0, model.padding)) / model.wide.scale
    model.wide.weight.copy_(full.flatten(1))


def _response(target: Tensor, kind: TraitKind, num_outputs: int, out_of_fold: Floats | None) -> Tensor:
    """(N, O) float64: the quantity, the case indicator or the class indicators, less what is predicted."""
    if kind == "multiclass":
        response = torch.nn.functional.one_hot(target.cpu().long(), num_outputs).double()
    else:
        response = target.cpu().double().unsqueeze(1)
    if out_of_fold is None:
        return response
    predicted = torch.from_numpy(out_of_fold)
    if kind != "quantitative":
        predicted = predicted.sigmoid()
    if kind == "multiclass":
        predicted = predicted / predicted.sum(1, keepdim=True)
    return response - predicted


def _stack(
    ridge: _Ridge, out_of_fold: Floats | None, target: Tensor, covariates: Tensor, kind: TraitKind
) -> Stack:
    """Slopes of the sparse part, where there is one, and of the ridge regression."""
    scores = [ridge.loo.cpu().numpy()]
    if out_of_fold is not None:
        scores.insert(0, out_of_fold)
    elif kind == "quantitative":
        nothing = np.zeros((1, covariates.shape[1]))
        return Stack((np.eye(1),), np.zeros(1), nothing)
    return stack(scores, target.cpu().numpy(), covariates.cpu().numpy(), kind=kind)


def _dosage_chunks(model: InterpretableSNPModel, genotypes: Tensor) -> Iterator[Tensor]:
    """Standardised dosages of all samples, some SNPs at a time, (N, up to CHUNK_SLOTS)."""
    for start in track(range(0, model.n_snps, CHUNK_SLOTS), "ridge regression, blocks of SNPs"):
        yield model.encoder.dosage(genotypes, start, min(start + CHUNK_SLOTS, model.n_snps))


def _relationship(model: InterpretableSNPModel, genotypes: Tensor) -> Tensor:
    """Genomic relationship matrix Z Z' / number of SNPs, (N, N) float64."""
    size = len(genotypes)
    total = torch.zeros(size, size, dtype=torch.float64, device=model.wide.weight.device)
    for z in _dosage_chunks(model, genotypes):
        total += z @ z.t()
    return total / _num_real(model)


def _num_real(model: InterpretableSNPModel) -> int:
    """Slots that hold a SNP: padding must not change what a penalty means."""
    return int(model.encoder.slot_mask.sum())


@dataclass(frozen=True)
class _Ridge:
    penalty: float
    loo_r2: float
    loo: Tensor  # (N, O) scores of samples left out
    fitted: Tensor  # (N, O) scores of the same samples, not left out
    dual: Tensor  # (N, O) so that genetic values are K @ dual
    fixed_effects: Tensor  # (Q, O), intercept first; the score is K @ dual + fixed @ fixed_effects


def _ridge(relationship: Tensor, response: Tensor, fixed: Tensor, *, with_fixed: bool) -> _Ridge:
    """Ridge regression with free fixed effects (intercept first), by eigenvectors of what they leave.

    ``with_fixed``: whether a score is the prediction, or what it adds to that of the fixed effects alone. A
    sample's own value moves the intercept fitted to the others the other way: where genotypes tell little, a
    logistic regression would read the value off that.
    """
    u, size, vt = torch.linalg.svd(fixed, full_matrices=False)
    kept = 1e-8 * size[0] < size
    q, back = u[:, kept], vt[kept].t() / size[kept]

    def project(values: Tensor) -> Tensor:
        along: Tensor = q @ (q.t() @ values)
        return values - along

    values, vectors = torch.linalg.eigh(project(project(relationship).t()))
    values = values.clamp(min=0.0)
    residual = project(response)
    rotated = vectors.t() @ residual
    leverage_fixed = (q**2).sum(1)
    best: tuple[float, float, Tensor, Tensor] | None = None
    for penalty in PENALTIES.tolist():
        shrink = values / (values + penalty)
        fitted = vectors @ (shrink.unsqueeze(1) * rotated)
        leverage = (leverage_fixed + (vectors**2) @ shrink).clamp(max=1 - 1e-9)
        loo_error = (residual - fitted) / (1 - leverage).unsqueeze(1)
        error = float((loo_error**2).mean())
        if best is None or error < best[0]:
            best = (error, penalty, loo_error, rotated / (values + penalty).unsqueeze(1))
    assert best is not None
    error, penalty, loo_error, coefficients = best
    dual = project(vectors @ coefficients)
    explained = response if with_fixed else torch.zeros_like(response)
    # Least squares of the smallest norm: CUDA's own solver takes no fixed effects that depend on each other.
    fixed_effects = back @ (q.t() @ (explained - relationship @ dual))
    spread = float(response.var(0, correction=0).mean())
    fitted = relationship @ dual + fixed @ fixed_effects
    loo = response - loo_error
    if not with_fixed:
        loo = loo - (response - residual / (1 - leverage_fixed).unsqueeze(1))
    return _Ridge(penalty, 1 - error / spread, loo, fitted, dual, fixed_effects)


@dataclass(frozen=True)
class Stack:
    """logits = sum of scores @ slope' + covariates @ covariate_slope' + intercept."""

    slopes: tuple[Floats, ...]  # (O, O) of each score
    intercept: Floats  # (O,)
    covariate_slope: Floats  # (O, Q)


def stack(
    scores: Sequence[Floats],
    target: NDArray[np.generic],
    covariates: Floats,
    *,
    kind: TraitKind,
) -> Stack:
    """Weights of scores (N, O) of the same samples, each left out of the making of its score.

    Quantities are weighted by least squares, classes by logistic regression. Weights of a quantity or of two
    classes are not negative: a score of a sample left out that says nothing falls as the sample's own value
    rises, as the mean of the others does, and would be turned round.
    """
    if kind == "quantitative":
        return _least_squares(scores, target.astype(np.float64), covariates)
    scales = [np.maximum(score.std(axis=0), 1e-8) for score in scores]
    inputs = [score / scale for score, scale in zip(scores, scales, strict=True)]
    classes = target.astype(np.int64)
    kept = list(range(len(inputs)))
    while True:
        fitted = _logistic([inputs[index] for index in kept], classes, covariates)
        width = inputs[0].shape[1]
        lowest = min(range(len(kept)), key=lambda place: fitted.coef_[0, place], default=0)
        if kind == "multiclass" or not kept or fitted.coef_[0, lowest] >= 0:
            break
        del kept[lowest]
    slopes = [np.zeros((width, width)) for _ in inputs]
    for place, index in enumerate(kept):
        slopes[index] = fitted.coef_[:, place * width : (place + 1) * width] / scales[index]
    covariate_slope = fitted.coef_[:, len(kept) * width :][:, : covariates.shape[1]]
    return Stack(tuple(slopes), fitted.intercept_, covariate_slope)


def _least_squares(scores: Sequence[Floats], target: Floats, covariates: Floats) -> Stack:
    fixed = np.column_stack([np.ones(len(target)), covariates])
    columns = np.column_stack(scores)
    on_fixed, fixed_of_target = (np.linalg.lstsq(fixed, part, rcond=None)[0] for part in (columns, target))
    weight, _ = nnls(columns - fixed @ on_fixed, target - fixed @ fixed_of_target)
    fixed_effects = fixed_of_target - on_fixed @ weight
    slopes = tuple(np.array([[slope]]) for slope in weight)
    return Stack(slopes, fixed_effects[:1], fixed_effects[None, 1:])


def _logistic(scores: Sequence[Floats], classes: NDArray[np.int64], covariates: Floats) -> LogisticRegression:
    inputs = np.column_stack([*scores, covariates])
    if not inputs.shape[1]:  # every score was dropped: the classes' shares alone
        inputs = np.zeros((len(classes), 1))
    # C = 10: with classes that separate perfectly the unpenalised slopes have no finite value.
    return LogisticRegression(C=10.0, max_iter=5000).fit(inputs, classes)

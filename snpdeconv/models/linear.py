"""The linear model in closed form: genomic ridge regression, calibrated on samples left out, as a wide path.

Owns how the fixed weights of ``linear="fitted"`` come about; needs the training samples only, as one tensor.
Shape suffixes: N samples, S slots, C channels, O outputs, Q covariates with the intercept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from snpdeconv.genetics.encoding import dosage_weights
from snpdeconv.models.model import InterpretableSNPModel

logger = logging.getLogger(__name__)

CHUNK_SLOTS = 4096
# Ratios of noise to genetic variance that are tried; 1e-4 is all but interpolation, 1e3 all but the mean.
PENALTIES = np.geomspace(1e-4, 1e3, 22)
MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class LinearFit:
    """What the fit found.

    Attributes:
        penalty: Chosen ratio of noise to genetic variance.
        loo_r2: Leave-one-out R squared, the mean over outputs (class indicators for classes).
        num_samples: Samples that it was fitted on.
        offset: (N, O) to be added to the model's logits of each sample given, so that the linear part is its
            leave-one-out prediction: beside the fit itself a network would find nothing left to learn.
    """

    penalty: float
    loo_r2: float
    num_samples: int
    offset: Tensor


@torch.no_grad()
def fit_linear(
    model: InterpretableSNPModel,
    genotypes: Tensor,
    target: Tensor,
    covariates: Tensor | None = None,
    *,
    kind: Literal["quantitative", "binary", "multiclass"],
    seed: int = 0,
) -> LinearFit:
    """Fills the wide path of a model with a ridge regression on all SNPs (GBLUP; Meuwissen et al. 2001).

    The penalty is the one with the least leave-one-out error (exact for a linear smoother: residual / (1 -
    leverage)). For classes the regression is on class indicators, and a logistic regression turns its
    leave-one-out scores into
    logits: scores of the samples that were fitted on are too good, the more so the smaller their class, and
    a calibration on them misplaces rare classes.

    The model's attention starts at each SNP's share of the variance that this regression explains.

    Args:
        model: The model; its wide path and the places' part of its attention are overwritten.
        genotypes: (N, ...) training samples, as ``model`` takes them.
        target: (N,) as the model is trained on: a quantity, 0 / 1, or class numbers.
        covariates: (N, num_covariates), where the model has them.
        kind: What the trait is.
        seed: Of the random choice of ``MAX_SAMPLES`` samples, where there are more: the work grows with N
            cubed.

    Returns:
        The chosen penalty and how well the fit predicts samples left out.
    """
    everyone = len(genotypes)
    chosen = torch.arange(everyone)
    if everyone > MAX_SAMPLES:
        chosen = torch.randperm(len(genotypes), generator=torch.Generator().manual_seed(seed))[:MAX_SAMPLES]
        logger.info("linear fit on %d of %d training samples", MAX_SAMPLES, len(genotypes))
        genotypes, target = genotypes[chosen], target[chosen]
        covariates = None if covariates is None else covariates[chosen]
    device = model.wide.weight.device
    response = _response(target, kind, model.num_outputs).to(device)
    fixed = [torch.ones(len(response), 1, dtype=torch.float64, device=device)]
    if model.num_covariates and covariates is not None:
        fixed.append(covariates.to(device, torch.float64))
    ridge = _ridge(_relationship(model, genotypes), response, torch.cat(fixed, dim=1))
    slope, intercept, fixed_slope = _calibrate(ridge, target, fixed[1:], kind)
    weight = torch.cat([z.double().t() @ ridge.dual for z in _dosage_chunks(model, genotypes)]) @ slope.t()
    weight /= _num_real(model)
    functional = dosage_weights(model.encoder.allele_frequency, model.encoder.encoding_dim)
    full = functional * weight.t().float().unsqueeze(1)
    full = torch.nn.functional.pad(full, (0, model.padding)) / model.wide.scale
    model.wide.weight.copy_(full.flatten(1))
    model.start_attention(weight.square().sum(1).float())
    model.wide.bias.copy_(intercept)
    if model.wide.covariate_weight is not None:
        model.wide.covariate_weight.copy_(fixed_slope)
    offset = torch.zeros(everyone, model.num_outputs, device=device)
    offset[chosen] = ((ridge.loo - ridge.fitted) @ slope.t()).float()
    fit = LinearFit(ridge.penalty, ridge.loo_r2, len(response), offset.cpu())
    logger.info(
        "linear fit: penalty %.3g, leave-one-out R2 %.3f, %d samples",
        fit.penalty,
        fit.loo_r2,
        fit.num_samples,
    )
    return fit


def _response(target: Tensor, kind: str, num_outputs: int) -> Tensor:
    """(N, O) float64: the quantity, the case indicator, or the class indicators."""
    if kind == "multiclass":
        return torch.nn.functional.one_hot(target.long(), num_outputs).double()
    return target.double().unsqueeze(1)


def _dosage_chunks(model: InterpretableSNPModel, genotypes: Tensor) -> Iterator[Tensor]:
    """Standardised dosages of all samples, some SNPs at a time, (N, up to CHUNK_SLOTS)."""
    for start in range(0, model.n_snps, CHUNK_SLOTS):
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
    loo: Tensor  # (N, O) predictions of samples left out
    fitted: Tensor  # (N, O) predictions of the same samples, not left out
    dual: Tensor  # (N, O) so that genetic values are K @ dual
    fixed_effects: Tensor  # (Q, O), intercept first


def _ridge(relationship: Tensor, response: Tensor, fixed: Tensor) -> _Ridge:
    """Ridge regression with unpenalised fixed effects, by eigenvectors of the projected relationship."""
    basis = torch.linalg.svd(fixed, full_matrices=False)
    q = basis.U[:, 1e-8 * basis.S[0] < basis.S]

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
    fixed_effects = torch.linalg.lstsq(fixed, response - relationship @ dual, driver="gelsd").solution
    spread = float(response.var(0, correction=0).mean())
    fitted = relationship @ dual + fixed @ fixed_effects
    return _Ridge(penalty, 1 - error / spread, response - loo_error, fitted, dual, fixed_effects)


def _calibrate(
    ridge: _Ridge, target: Tensor, covariates: list[Tensor], kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """From scores to logits: slope (O, O) on genetic values, intercept (O,), covariates' slope (O, Q - 1)."""
    outputs = ridge.loo.shape[1]
    if kind == "quantitative":
        identity = torch.eye(outputs, dtype=torch.float64, device=ridge.loo.device)
        return identity, ridge.fixed_effects[0], ridge.fixed_effects[1:].t()
    scale = ridge.loo.std(0).clamp(min=1e-8)
    inputs = torch.cat([ridge.loo / scale, *covariates], dim=1).cpu().numpy()
    coefficients, intercepts = _logistic(inputs, target.cpu().numpy(), kind)
    slopes = torch.from_numpy(coefficients).to(ridge.loo)
    slope = slopes[:, :outputs] / scale
    # The score is K dual + fixed effects: the logistic regression's slope applies to both parts.
    intercept = torch.from_numpy(intercepts).to(ridge.loo) + slope @ ridge.fixed_effects[0]
    return slope, intercept, slopes[:, outputs:] + slope @ ridge.fixed_effects[1:].t()


def _logistic(
    inputs: NDArray[np.float64], target: NDArray[np.generic], kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # C = 10: with classes that separate perfectly the unpenalised slopes have no finite value.
    fitted = LogisticRegression(C=10.0, max_iter=5000).fit(inputs, target.astype(np.int64))
    return fitted.coef_, fitted.intercept_

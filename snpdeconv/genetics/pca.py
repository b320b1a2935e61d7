"""Population structure: principal components of the training samples, on which other samples are projected.

N samples, V variants used, C components. Knows no files, traits or tables.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.ld import backward_r2, evenly_spaced
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

logger = logging.getLogger(__name__)

_WORK_BYTES = 2**26
_OVERSAMPLING = 10
_MAX_ITERATIONS = 15
# Relative change of the wanted eigenvalues at which the subspace counts as found.
_TOLERANCE = 1e-4
# Eigenvalues below this share of the first are rounding of single precision.
_RANK_TOLERANCE = 1e-5
# Of variants in LD beyond this, among so many neighbours, one stays: a long haplotype would be a component.
_R2_MAX = 0.2
_LD_WINDOW = 64


@dataclass(frozen=True)
class Components:
    """Principal components as loadings of variants; plain arrays, to be saved with a model.

    Attributes:
        loadings: (V, C) float32, orthonormal columns; the largest entry of each is positive.
        columns: (V,) int64 columns of the genotypes they were fitted on.
        frequency: (V,) float64 frequency of the counted allele in the training samples.
        score_sd: (C,) float64 standard deviation of the training samples' scores, in descending order.
        variance_share: (C,) float64 share of the training samples' total variance.
    """

    loadings: NDArray[np.float32]
    columns: NDArray[np.int64]
    frequency: NDArray[np.float64]
    score_sd: NDArray[np.float64]
    variance_share: NDArray[np.float64]

    def project(
        self, genotypes: PackedGenotypes, *, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Places samples on the components.

        Samples that were not fitted on come out closer to 0 than their like among the training samples, the
        more so the more variants there are a training sample and the smaller the component (Lee, Zou and
        Wright 2010, Ann. Stat. 38:3605). This is left as it is: components that stand clear of the noise
        shrink little, and those that do not should not be leant on.

        Returns (n, C) scores in units of the training samples' standard deviation; missing genotypes count as
        the mean.
        """
        num_samples = genotypes.num_samples if rows is None else len(rows)
        chosen = genotypes.take(rows=rows, columns=self.columns)
        scores = np.zeros((num_samples, self.loadings.shape[1]))
        for part, z in _standardised(chosen, self.frequency):
            scores += z @ self.loadings[part]
        return scores / self.score_sd


def fit_components(
    genotypes: PackedGenotypes,
    *,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    chrom: NDArray[np.object_],
    frequency: NDArray[np.float64],
    num_components: int,
    seed: int,
    max_variants: int = 50_000,
    exact_max_samples: int = 5_000,
) -> Components:
    """Fits principal components of standardised dosages.

    The scale is that of Patterson, Price and Reich 2006 (PLoS Genet. 2:e190), (g - 2p) / sqrt(2p(1 - p)), and
    missing genotypes are 0. Up to ``exact_max_samples`` samples the N x N relationship matrix is decomposed;
    beyond, the leading subspace is sought among all blocks of a randomized subspace iteration (Halko,
    Martinsson, Shkolnisky and Tygert 2011, SIAM J. Sci. Comput. 33:2580), each one pass over the genotypes.

    Autosomes alone take part where there are any, because on X and Y the first direction is sex; and of
    variants in LD (r² above .2 in the training samples, among 64 neighbours) only the first; of more than
    `max_variants`, as many are taken evenly before. `rows`: (N,) training samples, in which each of `columns`
    varies; `chrom` and `frequency` are of all variants of the cohort.
    """
    columns = independent_variants(
        genotypes, rows=rows, columns=columns, chrom=chrom, seed=seed, max_variants=max_variants
    )
    chosen = genotypes.take(rows=rows, columns=columns)
    most = min(len(rows) - 1, len(columns))
    if num_components > most:
        raise InputError(
            f"{num_components} principal components from {len(rows)} training samples and "
            f"{len(columns)} variants in little LD",
            where="data.num_components",
            hint=f"ask for at most {max(most, 0)}",
        )
    frequency = frequency[columns].astype(np.float64)
    if len(rows) <= exact_max_samples:
        spectrum = _exact(chosen, frequency, num_components)
    else:
        spectrum = _randomized(chosen, frequency, num_components, seed)
    eigenvalues = spectrum.eigenvalues
    if eigenvalues[-1] <= _RANK_TOLERANCE * eigenvalues[0]:
        num_independent = int((eigenvalues > _RANK_TOLERANCE * eigenvalues[0]).sum())
        raise InputError(
            f"{num_components} principal components asked for, and the training genotypes have "
            f"{num_independent} independent directions",
            where="data.num_components",
            hint=f"ask for at most {num_independent}",
        )
    directions = (spectrum.vectors / np.sqrt(eigenvalues)).astype(np.float32)
    loadings = np.empty((len(columns), num_components), dtype=np.float32)
    for part, z in _standardised(chosen, frequency):
        loadings[part] = z.T @ directions
    # An eigenvector's sign is arbitrary: fixed here, so that two fits of the same data agree.
    largest = np.abs(loadings).argmax(axis=0)
    loadings *= np.sign(loadings[largest, np.arange(num_components)])
    share = eigenvalues / spectrum.trace
    logger.info(
        "%d principal components of %d samples and %d variants: %.3g of the variance, the first %.3g",
        num_components,
        len(rows),
        len(columns),
        share.sum(),
        share[0],
    )
    return Components(loadings, columns, frequency, np.sqrt(eigenvalues / len(rows)), share)


def independent_variants(
    genotypes: PackedGenotypes,
    *,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    chrom: NDArray[np.object_],
    seed: int,
    max_variants: int = 50_000,
) -> NDArray[np.int64]:
    """Columns of which none is in LD with one before it that stays too; autosomes alone where there are any.

    Each varies in `rows`; of more than `max_variants`, as many are taken evenly before the LD is looked at.
    """
    # 23 to 26 may be X, Y, XY and MT of a human file, unless there are more: then it is another species'.
    numbers = np.array([int(name) if name.isdecimal() else 0 for name in chrom[columns]])
    most = int(numbers.max(initial=0))
    autosomal = (numbers > 0) & (numbers <= (most if most > 26 else 22))
    if autosomal.any():
        columns = columns[autosomal]
    columns = columns[evenly_spaced(len(columns), max_variants)].astype(np.int64)
    chosen = genotypes.take(rows=rows, columns=columns)
    stays = np.ones(len(columns), dtype=bool)
    for start, r2 in backward_r2(chosen, chrom=chrom[columns], window=_LD_WINDOW, seed=seed):
        for v, linked in enumerate(r2 > _R2_MAX, start=start):
            stays[v] = not stays[v - 1 - np.flatnonzero(linked)].any()
    return columns[stays]


@dataclass(frozen=True)
class _Spectrum:
    """The leading eigenvalues (C,) and eigenvectors (N, C) of the relationship matrix Z Z', and its trace."""

    eigenvalues: NDArray[np.float64]
    vectors: NDArray[np.float64]
    trace: float


def _exact(genotypes: PackedGenotypes, frequency: NDArray[np.float64], num_components: int) -> _Spectrum:
    num_samples = genotypes.num_samples
    relationship = np.zeros((num_samples, num_samples))
    for _, z in _standardised(genotypes, frequency):
        relationship += z @ z.T
    trace = float(np.trace(relationship))
    wanted = (num_samples - num_components, num_samples - 1)
    eigenvalues, vectors = scipy.linalg.eigh(relationship, subset_by_index=wanted, overwrite_a=True)
    return _Spectrum(eigenvalues[::-1], vectors[:, ::-1], trace)


def _randomized(
    genotypes: PackedGenotypes, frequency: NDArray[np.float64], num_components: int, seed: int
) -> _Spectrum:
    num_columns = num_components + _OVERSAMPLING
    start = np.random.default_rng(seed).standard_normal((genotypes.num_samples, num_columns))
    block, _ = np.linalg.qr(start)
    basis = images = np.empty((genotypes.num_samples, 0))
    before = np.zeros(num_components)
    for iteration in range(_MAX_ITERATIONS):
        image = np.zeros_like(block)
        trace = 0.0
        narrow = block.astype(np.float32)
        for _, z in _standardised(genotypes, frequency):
            image += z @ (z.T @ narrow)
            trace += float(np.vdot(z, z))
        basis, images = np.hstack([basis, block]), np.hstack([images, image])
        # Rayleigh-Ritz: the best eigenpairs inside the span of all blocks so far, in ascending order.
        eigenvalues, rotation = np.linalg.eigh(basis.T @ images)
        found = eigenvalues[::-1][:num_components]
        if np.all(np.abs(found - before) <= _TOLERANCE * found):
            logger.info("principal components: settled in %d passes", iteration + 1)
            break
        before = found
        # Twice, because one projection in floating point leaves a trace of the old blocks.
        for _ in range(2):
            image -= basis @ (basis.T @ image)
        block, _ = np.linalg.qr(image)
    else:
        logger.warning("principal components: the last of them had not settled in %d passes", _MAX_ITERATIONS)
    return _Spectrum(found, basis @ rotation[:, ::-1][:, :num_components], trace)


def _standardised(
    genotypes: PackedGenotypes, frequency: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Walks over the variants: which ones, and their (N, v) standardised dosages, missing ones 0."""
    centre = (2.0 * frequency).astype(np.float32)
    scale = (1.0 / np.sqrt(2.0 * frequency * (1.0 - frequency))).astype(np.float32)
    at_once = max(64, _WORK_BYTES // (4 * max(1, genotypes.num_samples)) // 4 * 4)
    for start, codes in genotypes.column_chunks(max_variants=at_once):
        part = slice(start, start + codes.shape[1])
        z = codes.astype(np.float32)
        z -= centre[part]
        z *= scale[part]
        z *= codes != MISSING
        yield part, z

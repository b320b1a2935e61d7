"""The linear part of a network before its training: a sparse fit, cross-fitted, and a ridge regression.

Carries terms from `finemapping`, which finds them, to `models`, which holds them; keeps the fit in a file.
Shapes: N training samples, V variants, S slots, O outputs, C covariates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

from snpdeconv.config import Config
from snpdeconv.console import progress, track
from snpdeconv.device import or_on_the_cpu
from snpdeconv.errors import InputError
from snpdeconv.files import replacing
from snpdeconv.finemapping import Settings
from snpdeconv.finemapping.joint import Deconvolution, deconvolve
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.terms import Terms
from snpdeconv.models.layers import SparsePart
from snpdeconv.models.linear import LinearFit, SparseScores, fit_linear
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines.dataset import Dataset
from snpdeconv.pipelines.evaluation import statistics_device
from snpdeconv.pipelines.score import looks_for_pairs, num_pair_tests, wants_pairs
from snpdeconv.training import distributed
from snpdeconv.version import __version__

logger = logging.getLogger(__name__)

# Folds of the cross-fit by size (samples times variants times classes): five cost four times the fit itself,
# two as much as it; the larger the cohort, the less a fit to half of it differs.
FOLDS = ((1e7, 5), (1e8, 3), (np.inf, 2))
# At pairs of SNPs: once for everyone, and once for each fold at most.
NUM_LOOKS = 1 + max(folds for _, folds in FOLDS)
# Each class is a fit of its own, and each fold as many again.
MOST_CLASSES = 4
SMALLEST_CLASS = 20
# Leave-one-out R squared of the class indicators from which on a sparse fit has nothing to add: ancestry
# reaches .96, and single effects look for it in vain for minutes.
ENOUGH = 0.9
# What the fit writes into the model.
_FITTED = ("wide.", "sparse.", "body.slot_attention.place", "body.pool.place")
_OFFSET = "offset"


def fit_linear_part(
    model: InterpretableSNPModel, dataset: Dataset, *, config: Config, device: torch.device, path: Path
) -> Tensor:
    """Fills the linear part of a model from the training samples, or from the file of an interrupted run.

    A collective: the ranks share the folds of the cross-fit, the first one does the rest and keeps the file.
    Gives the (N, O) offset that makes the linear part a prediction of samples left out, for `_loader`.
    """
    digest = _digest(config, dataset)
    kept = distributed.first_rank_does(lambda: _read(path, digest=digest))
    if kept is None:
        started = time.monotonic()
        with progress("linear part"):
            offset = _fit(model, dataset, config=config, device=device)
        kept = distributed.first_rank_does(lambda: _keep(path, model, offset=offset, digest=digest))
        logger.info("linear part fitted in %.1f s", time.monotonic() - started)
    else:
        logger.info("%s: the linear part was fitted before", path)
    if "sparse.slot" in kept:
        model.carry(
            SparsePart(len(kept["sparse.slot"]), kept["sparse.pair"].shape[1], num_outputs=model.num_outputs)
        )
    offset = kept.pop(_OFFSET)
    model.load_state_dict(kept, strict=False)
    return offset


def _fit(model: InterpretableSNPModel, dataset: Dataset, *, config: Config, device: torch.device) -> Tensor:
    train, kind = dataset.split.train, dataset.trait.kind

    def fitted(sparse: SparseScores | None) -> LinearFit:
        def on(where: torch.device) -> LinearFit:
            return fit_linear(
                model.to(where),
                torch.from_numpy(dataset.packed[train]),
                torch.from_numpy(dataset.target[train]),
                torch.from_numpy(dataset.covariates[train]) if dataset.covariates.shape[1] else None,
                kind=kind,
                sparse=sparse,
                max_samples=config.model.ridge_max_samples,
            )

        fit = distributed.first_rank_does(lambda: or_on_the_cpu(on, device, what="the ridge regression"))
        model.to(device)
        return fit

    if config.model.linear == "ridge":
        return fitted(None).offset
    if kind == "multiclass" and (alone := fitted(None)).loo_r2 > ENOUGH:
        logger.info("the network builds on no sparse fit: ridge regression alone tells the classes apart")
        return alone.offset
    return fitted(_sparse(dataset, config=config, device=device)).offset


def searches_pairs(config: Config, dataset: Dataset) -> bool:
    """Whether the sparse part was fitted beside a search of all pairs of SNPs."""
    if config.model.linear != "fitted" or dataset.trait.kind == "multiclass" or _reason_against(dataset):
        return False
    num_tests = num_pair_tests(len(dataset.split.train), len(dataset.variants), num_looks=NUM_LOOKS)
    return wants_pairs(config.interpretation, num_tests)


def _keep(path: Path, model: InterpretableSNPModel, *, offset: Tensor, digest: str) -> dict[str, Tensor]:
    """What the fit has written into the model, and the offset; in the file too."""
    kept = {_OFFSET: offset.cpu().contiguous()}
    kept |= {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name.startswith(_FITTED)
    }
    with replacing(path) as temporary:
        save_file(kept, temporary, metadata={"digest": digest, "sha256": _checksum(kept)})
    return kept


def _sparse(dataset: Dataset, *, config: Config, device: torch.device) -> SparseScores | None:
    """The sparse fit of the training samples; None, its reason in the log, where there is none to have."""
    reason = _reason_against(dataset)
    if reason is None:
        try:
            scores = _Fits.from_dataset(dataset, config=config, device=device).cross_fitted(
                seed=config.training.seed
            )
        except InputError as error:  # such as covariates that leave nothing to explain
            reason = str(error)
        else:
            if len(scores.terms):
                return scores
            reason = "no SNP or pair has an effect that can be told from none"
    logger.info("the network builds on no sparse fit: %s", reason)
    return None


def _reason_against(dataset: Dataset) -> str | None:
    if dataset.trait.kind == "quantitative":
        return None
    counts = np.bincount(dataset.target[dataset.split.train].astype(np.int64))
    if len(counts) > MOST_CLASSES:
        return f"{len(counts)} classes would take as many fits (at most {MOST_CLASSES})"
    if counts.min() < SMALLEST_CLASS:
        return f"the smallest class has {counts.min()} training people (at least {SMALLEST_CLASS})"
    return None


@dataclass(frozen=True)
class _Fits:
    """Sparse fits to some of the training samples."""

    genotypes: PackedGenotypes
    dataset: Dataset
    pairs: bool
    device: torch.device

    @classmethod
    def from_dataset(cls, dataset: Dataset, *, config: Config, device: torch.device) -> _Fits:
        genotypes = dataset.genotypes.take(rows=dataset.split.train)
        device = statistics_device(genotypes, device)
        pairs = dataset.trait.kind != "multiclass" and looks_for_pairs(
            config.interpretation, genotypes, num_looks=NUM_LOOKS, device=device
        )
        return cls(genotypes, dataset, pairs, device)

    @property
    def target(self) -> NDArray[np.float32] | NDArray[np.int64]:
        return self.dataset.target[self.dataset.split.train]

    @property
    def covariates(self) -> NDArray[np.float32]:
        return self.dataset.covariates[self.dataset.split.train]

    def cross_fitted(self, *, seed: int) -> SparseScores:
        """The fit to everyone, and what fits to the other folds predict of each."""
        everyone = np.arange(self.genotypes.num_samples)
        terms = distributed.first_rank_does(lambda: self.terms(everyone))
        in_sample = self.predict(terms, everyone)
        if not len(terms):
            return SparseScores(self._in_slots(terms), in_sample=in_sample, out_of_fold=in_sample)
        size = len(everyone) * self.genotypes.num_variants * in_sample.shape[1]
        num_folds = next(folds for most, folds in FOLDS if size <= most)
        groups = None if self.dataset.groups is None else self.dataset.groups[self.dataset.split.train]
        fold = assign_folds(
            self.target, kind=self.dataset.trait.kind, groups=groups, num_folds=num_folds, seed=seed
        )

        def left_out() -> dict[int, NDArray[np.float64]]:
            """This rank's share of the folds, each predicted by the others."""
            share = range(distributed.rank(), num_folds, distributed.world_size())
            return {
                one: self.predict(self.terms(np.flatnonzero(fold != one)), np.flatnonzero(fold == one))
                for one in track(share, "folds of the sparse fit")
            }

        out_of_fold = np.empty_like(in_sample)
        for share in distributed.every_rank_does(left_out):
            for one, predicted in share.items():
                out_of_fold[fold == one] = predicted
        scores = SparseScores(terms=self._in_slots(terms), in_sample=in_sample, out_of_fold=out_of_fold)
        logger.info(
            "sparse part: %d terms, %d of them of pairs, in %d folds",
            len(terms),
            (terms.second >= 0).sum(),
            num_folds,
        )
        return scores

    def terms(self, rows: NDArray[np.int64]) -> Terms:
        """Of the fit to some samples, without negligible terms."""
        fit = or_on_the_cpu(lambda device: self._fit(rows, device), self.device, what="single effects")
        return fit.terms.drop_negligible(self.dataset.frequency)

    def _fit(self, rows: NDArray[np.int64], device: torch.device) -> Deconvolution:
        return deconvolve(
            self.genotypes,
            self.target[rows],
            kind=self.dataset.trait.kind,
            chrom=self.dataset.variants.chrom,
            position_bp=self.dataset.variants.position_bp,
            rows=rows,
            covariates=self.covariates[rows],
            pairs=self.pairs,
            settings=Settings(device=str(device)),
        )

    def predict(self, terms: Terms, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, O) linear predictors of some samples."""
        return terms.predict(self.genotypes.take(rows=rows), self.covariates[rows])

    def _in_slots(self, terms: Terms) -> Terms:
        slot = np.append(self.dataset.layout.slot_of_variant, -1)
        return replace(terms, first=slot[terms.first], second=slot[terms.second])


def assign_folds(
    target: NDArray[np.float32] | NDArray[np.int64],
    *,
    kind: str,
    num_folds: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """(N,) folds of about equal size, each class spread evenly over them, and `groups` kept together."""
    stratum = np.zeros(len(target), dtype=np.int64) if kind == "quantitative" else target.astype(np.int64)
    if groups is None:
        folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    else:
        folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    fold = np.empty(len(target), dtype=np.int64)
    for one, (_, held_out) in enumerate(folds.split(stratum, stratum, groups)):
        fold[held_out] = one
    return fold


def _digest(config: Config, dataset: Dataset) -> str:
    """What the fit depends on: settings, cohort, samples, trait, covariates and groups, and this version."""
    digest = hashlib.sha256(json.dumps([__version__, dataset.cohort.digest, config.flat()]).encode())
    groups = np.empty(0) if dataset.groups is None else dataset.groups
    for values in (dataset.split.train, dataset.columns, dataset.target, dataset.covariates, groups):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, *, digest: str) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise OSError("no regular file")
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("digest", digest) != digest:
                logger.info("%s is of other settings or data; fitting anew", path)
                return None
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if facts.get("sha256") != _checksum(kept):
            raise ValueError("its checksum is another")
    # TypeError, RuntimeError: kinds and sizes of numbers that torch does not know.
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        logger.warning("%s is damaged (%s); fitting anew", path, str(error)[:200])
        return None
    return kept

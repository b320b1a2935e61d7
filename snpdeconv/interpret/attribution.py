"""What a trained network says about each SNP: its attention, and integrated gradients of its output.

Owns the path from the mean genotype, how batches are spread over threads, and how many samples memory takes
at once. Takes any iterable of batches; knows no variant, no file and no training. Shapes: B batch, N samples,
S slots, C channels, O outputs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.console import Progress, progress, track
from snpdeconv.device import GIB, Allocations, OomSafeBatches, available_bytes, is_out_of_memory
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.encoding import channel_means
from snpdeconv.models.model import GPUOptimizedSNPModel, InterpretableSNPModel

logger = logging.getLogger(__name__)


def path_attribution(
    model: InterpretableSNPModel,
    genotypes: Tensor,
    covariates: Tensor | None,
    *,
    baseline: Tensor,
    kind: TraitKind,
    rule: Iterable[tuple[float, float]],
) -> tuple[Tensor, Tensor]:
    """Attributions (B, S) and the change (B,) of the output that they should sum to."""
    with torch.no_grad():
        encoded = model.encode(genotypes).float()
        outputs = model.forward_encoded(encoded, covariates)
        # Weights (B, O) of the outputs whose sum is attributed.
        contrast = torch.ones_like(outputs)
        if kind == "multiclass":
            contrast.fill_(-1 / (outputs.shape[1] - 1)).scatter_(1, outputs.argmax(dim=1, keepdim=True), 1.0)
        start = baseline.expand_as(encoded)
        moved = (outputs * contrast).double().sum(dim=1)
        moved = moved - (model.forward_encoded(start, covariates) * contrast).double().sum(dim=1)
    gradient = torch.zeros_like(encoded)  # the mean along the path
    for fraction, weight in rule:
        point = torch.lerp(start, encoded, fraction).requires_grad_()
        output = (model.forward_encoded(point, covariates) * contrast).sum()
        gradient.add_(torch.autograd.grad(output, point)[0], alpha=weight)
    return ((encoded - baseline) * gradient).double().sum(dim=2), moved


def path_rule(steps: int) -> list[tuple[float, float]]:
    """Fractions of the path with their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    u = (nodes + 1) / 2
    return list(zip((u**3).tolist(), (1.5 * u**2 * weights).tolist(), strict=True))


def mean_encoding(model: InterpretableSNPModel) -> Tensor:
    """(1, S, C) expected encoding at the frequencies that the model was trained with; padding slots are 0."""
    encoder = model.encoder
    mean = channel_means(encoder.allele_frequency, encoder.encoding_dim) * encoder.slot_mask
    return mean.transpose(0, 1).unsqueeze(0).contiguous()


Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, device: torch.device | str
) -> Iterator[Result]:
    """What the work gives for each item, in order; on a GPU one after the other.

    The work changes nothing that another call reads. It runs on other threads, to which neither autocast nor
    the mode of gradients carries over. Items are taken as they are needed.
    """
    num_threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    if num_threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        # Threads that are made later take the number that was set last.
        torch.set_num_threads(num_threads)


Aggregate = Literal["mean", "max"]

# Above this the attributions are not to be trusted in detail.
LARGE_GAP = 0.1


@dataclass(frozen=True)
class Attribution:
    """Importance of each slot, over samples."""

    method: str  # ``attention`` or ``integrated_gradients``
    score: NDArray[np.float64]  # (S,) non-negative
    num_samples: int  # samples looked at
    # For gradients, how far the attributions of a sample are from summing to the change of its output: mean
    # absolute difference over mean absolute change. 0 is exact.
    completeness_gap: float | None = None
    change: float | None = None  # for gradients, that mean absolute change


def pooled(parts: Sequence[Attribution]) -> Attribution:
    """The mean over all samples, from the means over some of them each."""
    weight = np.array([part.num_samples for part in parts], dtype=np.float64)
    score: NDArray[np.float64] = np.average([part.score for part in parts], axis=0, weights=weight)
    gap, change = None, None
    if parts[0].completeness_gap is not None:
        changes = weight * [part.change for part in parts]
        change = float(changes.sum() / weight.sum())
        if change > 0:
            gap = float(np.average([part.completeness_gap for part in parts], weights=changes))
        else:
            gap = 0.0
    return Attribution(parts[0].method, score, int(weight.sum()), completeness_gap=gap, change=change)


def attention_scores(
    model: InterpretableSNPModel | GPUOptimizedSNPModel,
    loader: Iterable[Any],
    *,
    device: torch.device | str,
    max_samples: int | None = None,
    aggregate: Aggregate = "mean",
) -> Attribution:
    """The model's SNP-level attention, in evaluation mode and full precision.

    `loader` gives batches with ``.genotypes`` and ``.covariates``, or tuples (genotypes, ...). `max_samples`
    takes its first samples: shuffle it where the cohort is sorted. Batches that memory does not hold are
    halved.
    """
    plain = _plain(model)
    scores, pieces = _Scores(aggregate), OomSafeBatches()

    @torch.no_grad()
    def attention(batch: tuple[Tensor, Tensor | None]) -> tuple[int, list[Tensor]]:
        genotypes = batch[0].to(device)
        found = pieces.map(
            lambda rows: scores.reduced(plain.attention(genotypes[rows])), num_samples=len(genotypes)
        )
        return len(genotypes), list(found)

    with _evaluation(plain, device):
        looked = map_on_threads(attention, _batches(loader, max_samples=max_samples), device=device)
        for num, found in track(looked, "attention, batches", total=length_hint(loader)):
            for part in found:
                scores.add(part)
            scores.num_samples += num
    return Attribution("attention", scores.result(), scores.num_samples)


def integrated_gradients(
    model: InterpretableSNPModel | GPUOptimizedSNPModel,
    loader: Iterable[Any],
    *,
    kind: TraitKind,
    device: torch.device | str,
    steps: int = 32,
    max_samples: int | None = None,
    aggregate: Aggregate = "mean",
) -> Attribution:
    """Integrated gradients (Sundararajan et al. 2017) of the output with respect to the encoded genotypes.

    The path is straight, from the mean genotype of the training samples to each sample. Integration is by the
    Gauss-Legendre rule after the substitution t = u^3, which puts more points near the mean: there the
    normalisation layers of a network see inputs near zero and turn fastest. The baseline is the mean of every
    channel rather than an all-missing genotype, because the weights of a missing indicator are hardly trained
    and would add the same noise to every sample. Covariates stay as they are. Each pass takes one step of the
    path for one batch of the loader, so memory is that of training with that batch size, and on a CPU as many
    times that as torch has threads, each of which takes batches of its own; a batch that memory does not hold
    is halved. The model runs in evaluation mode and full precision.

    The output attributed is the logit (binary), the value (quantitative), or the logit of the predicted class
    less the mean of the others (multiclass); the score is the mean, or maximum, over samples of the absolute
    attribution, summed over channels. `loader` and `max_samples` are as for `attention_scores`.
    """
    rule = path_rule(steps)
    plain = _plain(model)
    scores, pieces = _Scores(aggregate), OomSafeBatches()
    gap, change = 0.0, 0.0
    with _evaluation(plain, device), progress("integrated gradients, passes") as update:
        passes = _Passes(update, total=length_hint(loader) * steps)
        baseline = mean_encoding(plain)

        def attribution(batch: tuple[Tensor, Tensor | None]) -> tuple[int, list[tuple[Tensor, Tensor]]]:
            genotypes, covariates = (None if given is None else given.to(device) for given in batch)
            assert genotypes is not None

            def piece(rows: slice) -> tuple[Tensor, Tensor]:
                found, moved = path_attribution(
                    plain,
                    genotypes[rows],
                    None if covariates is None else covariates[rows],
                    baseline=baseline,
                    kind=kind,
                    rule=passes.counted(rule, len(genotypes[rows]) / len(genotypes)),
                )
                lacking = (found.sum(dim=1) - moved).abs().sum()
                return scores.reduced(found.abs()), torch.stack([lacking, moved.abs().sum()])

            return len(genotypes), list(pieces.map(piece, num_samples=len(genotypes)))

        for num, found in map_on_threads(
            attribution, _batches(loader, max_samples=max_samples), device=device
        ):
            for part, gap_and_change in found:
                scores.add(part)
                lacking, moved = gap_and_change.tolist()
                gap += lacking
                change += moved
            scores.num_samples += num
    completeness_gap = gap / change if change > 0 else 0.0
    logger.info(
        "integrated gradients: %d samples, %d steps, completeness gap %.2g",
        scores.num_samples,
        steps,
        completeness_gap,
    )
    if completeness_gap > LARGE_GAP:
        logger.warning(
            "integrated gradients miss %.0f %% of the output's change; raise the number of steps (now %d)",
            100 * completeness_gap,
            steps,
        )
    return Attribution(
        "integrated_gradients",
        scores.result(),
        scores.num_samples,
        completeness_gap=completeness_gap,
        change=change / scores.num_samples,
    )


class _Passes:
    """Counts passes through the network, on any thread."""

    def __init__(self, update: Progress, *, total: int) -> None:
        self._update, self._total = update, total
        self._done, self._lock = 0.0, threading.Lock()

    def counted(self, rule: Sequence[tuple[float, float]], share: float) -> Iterator[tuple[float, float]]:
        """The points of a path, for a share of a batch."""
        for point in rule:
            yield point
            with self._lock:
                self._done += share
                self._update(self._done, self._total)


class _Scores:
    """Scores (S,) of all samples, from those of a piece at a time."""

    def __init__(self, aggregate: Aggregate) -> None:
        self.num_samples = 0
        self._aggregate = aggregate
        self._all: Tensor | None = None

    def reduced(self, scores: Tensor) -> Tensor:
        """(B, S) -> (S,)."""
        return scores.amax(dim=0).double() if self._aggregate == "max" else scores.double().sum(dim=0)

    def add(self, part: Tensor) -> None:
        if self._all is None:
            self._all = part
        else:
            self._all = torch.maximum(self._all, part) if self._aggregate == "max" else self._all + part

    def result(self) -> NDArray[np.float64]:
        assert self._all is not None, "the loader gave no samples"
        scores = self._all if self._aggregate == "max" else self._all / self.num_samples
        return scores.cpu().numpy()


def _plain(model: InterpretableSNPModel | GPUOptimizedSNPModel) -> InterpretableSNPModel:
    """The network without the wrapper that sets its precision: attribution is in full precision."""
    return model.base if isinstance(model, GPUOptimizedSNPModel) else model


@contextlib.contextmanager
def _evaluation(model: InterpretableSNPModel, device: torch.device | str) -> Iterator[None]:
    """Evaluation mode without autocast and with fixed weights; all comes back as it was."""
    was_training = model.training
    # Gradients by the weights would be computed in part although nobody asks for them.
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train(False)
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        model.train(was_training)


def _batches(loader: Iterable[Any], *, max_samples: int | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(genotypes, covariates) of the first `max_samples` samples."""
    left = max_samples
    for batch in loader:
        if isinstance(batch, (tuple, list)):
            genotypes, covariates = batch[0], batch[2] if len(batch) > 2 else None
        else:
            genotypes, covariates = batch.genotypes, batch.covariates
        if left is not None:
            genotypes = genotypes[:left]
            covariates = None if covariates is None else covariates[:left]
            left -= len(genotypes)
        yield genotypes, covariates
        if left == 0:
            return


# On a CPU, slots of all samples at once: with fewer, the time between operations shows; with more, what one
# operation leaves is gone from the cache before the next.
SLOTS_AT_ONCE = 2**17
# On a GPU, samples that are looked at to learn what each takes.
NUM_TRIED = 2


def attribution_batch_size(
    model: InterpretableSNPModel,
    genotypes: Tensor,
    covariates: Tensor | None,
    *,
    device: torch.device,
    safety: float,
) -> int:
    """Samples, at least 1, whose outputs and gradients are best computed together.

    Genotypes (n, S / 4), packed, and covariates (n, C) of a few samples are for a trial; `safety` is the
    share of a GPU's available memory that the work may take. Where memory runs out all the same, the work
    halves its batches itself.
    """
    if device.type == "cpu":
        return max(1, SLOTS_AT_ONCE // model.n_snps)
    try:
        each = bytes_per_sample(model, genotypes, covariates, device=device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 1
    fits = max(1, int(safety * available_bytes(device)) // max(1, each))
    logger.info("%.3f GiB a sample: %d at once fit on %s", each / GIB, fits, device)
    return fits


def bytes_per_sample(
    model: InterpretableSNPModel, genotypes: Tensor, covariates: Tensor | None, *, device: torch.device
) -> int:
    """Most memory that a gradient of the model's outputs by its input takes, over the samples in it."""
    given = genotypes.to(device), None if covariates is None else covariates.to(device)
    was_training = model.training
    model.eval()
    try:
        _gradient(model, *given)  # work spaces that are made once, and stay
        with Allocations(device) as taken:
            _gradient(model, *given)
            taken.end_phase()
    finally:
        model.train(was_training)
    return max(taken.peak_bytes) // len(genotypes)


def _gradient(model: InterpretableSNPModel, genotypes: Tensor, covariates: Tensor | None) -> None:
    encoded = model.encode(genotypes).requires_grad_()
    torch.autograd.grad(model.forward_encoded(encoded, covariates).sum(), encoded)

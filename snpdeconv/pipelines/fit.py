"""Training one network on one dataset, from settings to the best weights; resumes by itself.

The only place that puts model, loaders and trainer together.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.config import Config, TrainingConfig
from snpdeconv.device import Precision, deterministic
from snpdeconv.errors import ConfigError
from snpdeconv.genetics.ld import ld_neighbors
from snpdeconv.genetics.packed import MISSING
from snpdeconv.models.model import GPUOptimizedSNPModel, InterpretableSNPModel
from snpdeconv.pipelines.dataset import Dataset, slot_genotypes
from snpdeconv.pipelines.linear_part import fit_linear_part
from snpdeconv.tracking.home import cache_dir
from snpdeconv.training import distributed
from snpdeconv.training.data import PackedLoader
from snpdeconv.training.memory import GPUMemoryManager
from snpdeconv.training.metrics import evaluate, probabilities
from snpdeconv.training.preemption import PreemptionSignal
from snpdeconv.training.step import FocalLoss, balanced_class_weights, make_loss
from snpdeconv.training.trainer import MultiGPUSNPTrainer

logger = logging.getLogger(__name__)

_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}
_TORCHS_OWN = "torchinductor_"  # and the user's name
# A batch that leaves fewer steps than this in an epoch would train a small cohort too little.
_STEPS_AN_EPOCH = 32


def set_compile_cache_dir() -> None:
    """Points torch.compile at the home, where a later run on any machine finds what this one compiled.

    Left to itself it compiles into the machine's temporary folder, which on a cluster is another one for
    every job. A folder that the user named is left as it is. To be called before anything is compiled.
    """
    for variable, folder in _FOLDERS.items():
        named = os.environ.get(variable)
        # torch writes its own choice into the environment as soon as it is imported.
        if named is None or any(part.startswith(_TORCHS_OWN) for part in Path(named).parts):
            os.environ[variable] = str(cache_dir() / folder)


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes:
        model: With the best weights, on the device it was trained on.
        history: A list per quantity, one value an epoch.
        start: What validation said of the network before the first epoch.
        best_epoch: The epoch whose weights these are, from 1; 0 is the start, the fitted linear part.
        start_attention: (S,) its attention before the first epoch, which is the same for everybody.
    """

    model: InterpretableSNPModel
    history: dict[str, list[float]]
    start: dict[str, float]
    best_epoch: int
    start_attention: NDArray[np.float64] | None = None

    def validation(self) -> dict[str, float | None]:
        """What validation said at the best epoch, by quantity; None where that is no number."""
        said = self.start
        if self.best_epoch > 0:
            said = {name: self.history[name][self.best_epoch - 1] for name in self.start}
        return {name: value if math.isfinite(value) else None for name, value in said.items()}


def build_model(config: Config, dataset: Dataset) -> InterpretableSNPModel:
    """The network that the settings describe, with the training samples' frequencies (and LD graph) in it."""
    torch.manual_seed(config.training.seed)
    neighbors = neighbor_weights = None
    layout = dataset.layout
    if config.model.architecture == "gnn":
        graph = ld_neighbors(
            slot_genotypes(dataset),
            chrom=layout.from_variants(dataset.variants.chrom, fill=""),
            rows=dataset.split.train,
        )
        neighbors, neighbor_weights = torch.from_numpy(graph.neighbors), torch.from_numpy(graph.weights)
    return InterpretableSNPModel(
        layout.num_slots,
        config.model.architecture,
        encoding_dim=config.model.encoding_dim,
        linear="trained" if config.model.linear == "trained" else "fitted",
        num_outputs=dataset.num_outputs,
        num_covariates=dataset.covariates.shape[1],
        width=config.model.width,
        num_layers=config.model.num_layers,
        num_heads=config.model.num_heads,
        channels=config.model.channels,
        dropout=config.model.dropout,
        patch=config.model.patch,
        allele_frequency=torch.from_numpy(layout.from_variants(dataset.frequency, fill=0.5)).float(),
        slot_mask=torch.from_numpy(layout.slot_mask),
        checkpoint_activations=config.memory.checkpoint_activations,
        neighbors=neighbors,
        neighbor_weights=neighbor_weights,
    )


def choose_batch_size(config: Config, dataset: Dataset) -> int:
    """The batch of a step, all ranks together: as asked, or by the number of samples, so that it learns well.

    No memory and no number of devices has a say: what a device does not hold at once is accumulated.
    """
    requested = config.training.batch_size
    if requested != "auto":
        return requested
    share = len(dataset.split.train) // (_STEPS_AN_EPOCH * config.training.accumulation)
    useful = 1 << max(3, share.bit_length() - 1)
    chosen = min(useful, config.memory.max_batch_size)
    logger.info(
        "batch size %d: about %d steps an epoch, and memory.max_batch_size=%d at most",
        chosen, _STEPS_AN_EPOCH, config.memory.max_batch_size,
    )  # fmt: skip
    return chosen


def choose_batch_sizes(
    config: Config, dataset: Dataset, precision: Precision, *, device: torch.device
) -> tuple[int, int | None]:
    """The batch of a step, and how much of it goes through the model at once: None for whole batches.

    The latter is measured where the batch is chosen here: as much as each device holds.
    """
    batch_size = choose_batch_size(config, dataset)
    if config.training.batch_size != "auto":
        return batch_size, None
    micro_batch_size = GPUMemoryManager(device=device, safety=config.memory.safety).get_optimal_batch_size(
        dataset.layout.num_slots,
        encoding_dim=config.model.encoding_dim,
        dtype=precision.dtype or torch.float32,
        model=build_model(config, dataset).to(device),
        max_batch=-(-batch_size // distributed.world_size()),
    )
    logger.info("%d samples at once on each of %d devices", micro_batch_size, distributed.world_size())
    return batch_size, micro_batch_size


def fit(
    config: Config,
    dataset: Dataset,
    *,
    genotypes: Tensor,
    loss: torch.nn.Module,
    batch_size: int,
    micro_batch_size: int | None = None,
    device: torch.device,
    precision: Precision,
    checkpoint_dir: Path,
    log_metrics: Callable[[int, Mapping[str, float]], None] | None,
    should_stop: Callable[[], bool] | None = None,
) -> Fitted:
    """Trains to the end, from the newest complete checkpoint where there is one; a collective.

    `genotypes` (N, S / 4) are those of `place_genotypes`; at most `micro_batch_size` samples of a batch go
    through the model at once. `should_stop` is asked between steps: True saves and raises `Preempted`.
    """
    base = distributed.all_or_none_do(lambda: build_model(config, dataset).to(device))
    offset = None
    if config.model.linear != "trained":
        linear = checkpoint_dir / "linear.safetensors"
        offset = fit_linear_part(base, dataset, config=config, device=device, path=linear)
    nobody = torch.full((1, base.n_snps), MISSING, dtype=torch.uint8, device=device)
    start_attention = base.attention(nobody)[0].double().cpu().numpy()
    if config.precision.compile and device.type == "cpu":
        logger.info("not compiled: on CPUs torch.compile gains nothing here")
    compiles = config.precision.compile and device.type == "cuda"
    if compiles:
        set_compile_cache_dir()
    model = GPUOptimizedSNPModel(
        base,
        use_amp=precision.dtype is not None,
        amp_dtype=precision.dtype or torch.bfloat16,
        compile=compiles,
    )
    drawn: dict[str, Any] = {"batch_size": batch_size, "seed": config.training.seed, "device": device}
    trainer = MultiGPUSNPTrainer(
        model,
        _loader(dataset, "train", genotypes, offset=offset, **drawn),
        _loader(dataset, "val", genotypes, **drawn),
        use_amp=precision.dtype is not None,
        amp_dtype=precision.dtype or torch.bfloat16,
        loss=loss.to(device),
        learning_rate=config.training.learning_rate,
        weight_decay=config.training.weight_decay,
        schedule=config.training.schedule,
        warmup_fraction=config.training.warmup_fraction,
        gradient_clip=config.training.gradient_clip,
        accumulation=config.training.accumulation,
        micro_batch_size=micro_batch_size,
        seed=config.training.seed,
        device=device,
        metrics=_metrics(dataset),
        log_metrics=log_metrics,
        validate_before_training=True,
        log_every=config.tracking.log_every_steps,
        checkpoint_every_steps=config.training.checkpoint_every_steps,
        should_stop=should_stop,
    )
    listening = should_stop.deferred() if isinstance(should_stop, PreemptionSignal) else nullcontext()
    with deterministic(device, wanted=config.precision.deterministic), listening:
        history = trainer.train(config.training.epochs, config.training.patience, checkpoint_dir)
    best_epoch = trainer.best_epoch
    assert best_epoch is not None  # a loss that is not finite ends the run
    return Fitted(
        model=base,
        history=history,
        start=trainer.start,
        best_epoch=best_epoch,
        start_attention=start_attention,
    )


def _loader(
    dataset: Dataset,
    part: str,
    genotypes: Tensor,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    offset: Tensor | None = None,
) -> PackedLoader:
    """Batches of one part of the split, with `offset` (samples of it, O) to be added to their logits."""
    covariates = torch.from_numpy(dataset.covariates)
    if offset is not None:
        added = torch.zeros(len(covariates), offset.shape[1])
        added[torch.from_numpy(getattr(dataset.split, part))] = offset
        covariates = torch.cat([covariates, added], dim=1)
    return PackedLoader(
        genotypes,
        torch.from_numpy(dataset.target),
        covariates if covariates.shape[1] else None,
        rows=torch.from_numpy(getattr(dataset.split, part)),
        batch_size=batch_size,
        shuffle=part == "train",
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        device=device,
    )


def make_training_loss(training: TrainingConfig, dataset: Dataset) -> torch.nn.Module:
    """The loss of the settings, with the training samples' class weights."""
    quantitative = dataset.trait.kind == "quantitative"
    name = training.loss
    if name == "auto":
        name = "mse" if quantitative else "focal"
    if (name == "mse") != quantitative:
        raise ConfigError(
            f"{name} does not fit a {dataset.trait.kind} trait",
            where="training.loss",
            hint="--set training.loss=auto",
        )
    if name == "mse":
        return make_loss(name)
    weights = None
    if training.class_weights == "balanced":
        train = torch.from_numpy(dataset.target[dataset.split.train])
        weights = balanced_class_weights(train, len(dataset.trait.classes))
    if name == "cross_entropy":
        return make_loss(name, class_weights=weights)
    return FocalLoss(alpha=training.focal_alpha, gamma=training.focal_gamma, class_weights=weights)


def _metrics(dataset: Dataset) -> Callable[[Tensor, Tensor], Mapping[str, float]]:
    kind = dataset.trait.kind
    shown = ("r2", "pearson_r") if kind == "quantitative" else ("auroc", "accuracy", "macro_f1")

    def measure(logits: Tensor, target: Tensor) -> Mapping[str, float]:
        metrics = evaluate(kind, probabilities(kind, logits.numpy()), np.asarray(target))
        return {name: metrics[name] for name in shown}

    return measure

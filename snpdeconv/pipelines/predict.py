"""The predict command: a registered model and another cohort in, a table of predictions out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError
from snpdeconv.interpret.ranking import write_tsv
from snpdeconv.pipelines.bundle import load_bundle
from snpdeconv.pipelines.cohort_input import cohort_input
from snpdeconv.pipelines.dataset import open_cohort
from snpdeconv.pipelines.evaluation import prediction_table, predictions_from
from snpdeconv.pipelines.inference import choose_device, logits
from snpdeconv.tracking.home import cache_dir
from snpdeconv.tracking.registry import download, resolve
from snpdeconv.training.precision import choose_precision

logger = logging.getLogger(__name__)

_DEFAULT_BATCH = 64


@dataclass(frozen=True)
class PredictResult:
    """What was predicted.

    Attributes:
        model: Registered name.
        version: The version that `NAME@champion` meant at this time.
        predictions: The table.
        num_samples: Its rows.
        variants: How the model's variants were found in the cohort.
    """

    model: str
    version: int
    predictions: str
    num_samples: int
    variants: dict[str, int]


def predict(
    config: Config, *, model: str, genotypes: str, covariates: Path | None, out: Path
) -> PredictResult:
    """Predicts every person of a cohort.

    Args:
        config: Its device, batch size and compilation are used; the precision is the one of the training.
        model: NAME@alias or NAME/version.
        genotypes: The cohort.
        covariates: Table of covariates, where the model takes one.
        out: Table to write.

    Raises:
        UserError: No such model, or a cohort that it cannot be used on.
    """
    if out.is_dir():
        raise ConfigError("is a folder", where=out, mend="give the path of the table to write")
    reference = resolve(model)
    bundle = load_bundle(download(reference, cache_dir=cache_dir()))
    logger.info("%s is %s version %d", model, reference.name, reference.version)
    device = choose_device(config.resources.device)
    precision = choose_precision(device, requested=bundle.config.precision.amp)
    cohort = open_cohort(genotypes, data=bundle.config.data)
    given = cohort_input(
        bundle,
        cohort,
        rows=np.arange(len(cohort.samples)),
        covariates=None if covariates is None else str(covariates),
        where=genotypes,
    )
    batch_size = config.training.batch_size
    if config.precision.compile and device.type == "cuda":
        bundle.model.compile()
    outputs = logits(
        bundle.model.to(device),
        given.packed,
        given.covariates,
        batch_size=_DEFAULT_BATCH if batch_size == "auto" else batch_size,
        device=device,
        precision=precision,
    )
    predictions = predictions_from(
        outputs, calibration=bundle.calibration, kind=bundle.kind, scale=bundle.scale
    )
    write_tsv(prediction_table(cohort.samples, predictions, kind=bundle.kind, classes=bundle.classes), out)
    return PredictResult(
        model=reference.name,
        version=reference.version,
        predictions=str(out),
        num_samples=len(cohort.samples),
        variants=given.report,
    )

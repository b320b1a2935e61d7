"""The predict command: a registered model and another cohort in, a table of predictions out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError
from snpdeconv.genetics.samples import Samples
from snpdeconv.interpret.ranking import write_tsv
from snpdeconv.pipelines.bundle import Bundle, load_bundle
from snpdeconv.pipelines.cohort_input import CohortInput, cohort_input
from snpdeconv.pipelines.dataset import open_cohort
from snpdeconv.pipelines.evaluation import prediction_table, predictions_from
from snpdeconv.pipelines.inference import choose_device, logits
from snpdeconv.pipelines.provenance import (
    Trace,
    file_facts,
    finish_run,
    model_facts,
    model_tags,
    run_tags,
    tracing,
    tracked_run,
)
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
    with tracing() as trace:
        return _predict(config, trace, model=model, genotypes=genotypes, covariates=covariates, out=out)


def _predict(
    config: Config, trace: Trace, *, model: str, genotypes: str, covariates: Path | None, out: Path
) -> PredictResult:
    reference = resolve(model)
    bundle = load_bundle(download(reference, cache_dir=cache_dir()))
    logger.info("%s is %s version %d", model, reference.name, reference.version)
    cohort = open_cohort(genotypes, data=bundle.config.data)
    given = cohort_input(
        bundle,
        cohort,
        rows=np.arange(len(cohort.samples)),
        covariates=None if covariates is None else str(covariates),
        where=genotypes,
    )
    inputs = {"genotypes": {"path": str(Path(genotypes).absolute()), "sha256": cohort.digest}}
    if covariates is not None:
        inputs["covariates"] = file_facts(covariates)
    trace.keep(
        out.parent,
        stem=out.stem,
        model=model_facts(reference),
        inputs=inputs,
        trait=bundle.trait,
        settings=config.model_dump(mode="json"),
    )
    tags = run_tags(
        config, "predict", folder=out.parent, data=cohort.digest, trait=bundle.trait, **model_tags(reference)
    )
    name = f"{reference.name} {reference.version} predict"
    with tracked_run(config, name=name, params=config.flat(), tags=tags) as run:
        _write(config, bundle, given, cohort.samples, out=out)
        trace.add(results={"predictions": file_facts(out)})
        found = {f"variants/{name}": count for name, count in given.report.items()}
        run.log_metrics(0, {"people": len(cohort.samples), **found})
        if config.tracking.log_predictions:
            run.log_artifact(out)
        finish_run(run, config)
        trace.add(mlflow_run=run.run_id)
    return PredictResult(
        model=reference.name,
        version=reference.version,
        predictions=str(out),
        num_samples=len(cohort.samples),
        variants=given.report,
    )


def _write(config: Config, bundle: Bundle, given: CohortInput, samples: Samples, *, out: Path) -> None:
    device = choose_device(config.resources.device)
    precision = choose_precision(device, requested=bundle.config.precision.amp)
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
    write_tsv(prediction_table(samples, predictions, kind=bundle.kind, classes=bundle.classes), out)

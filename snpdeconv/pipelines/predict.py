"""The predict command: a registered model and another cohort in, a table of predictions out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
_LITTLE = 0.5


@dataclass(frozen=True)
class PredictResult:
    """What was predicted.

    Attributes:
        model: Registered name.
        version: The version that `NAME@champion` meant at this time.
        predictions: The table.
        num_samples: Its rows.
        variants: How the model's variants were found in the cohort.
        missing_genotypes: Genotypes at the model's variants that are missing, over all people.
        num_na: People without a prediction, because too little of the model's weight is typed.
    """

    model: str
    version: int
    predictions: str
    num_samples: int
    variants: dict[str, int]
    missing_genotypes: int
    num_na: int


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
        check=config.data.check_frequencies,
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
        found["missing_genotypes"] = int(given.missing.sum())
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
        missing_genotypes=int(given.missing.sum()),
        num_na=int((given.typed < config.data.min_typed_weight).sum()),
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
    table = prediction_table(samples, predictions, kind=bundle.kind, classes=bundle.classes)
    poorly = given.typed < config.data.min_typed_weight
    _tell_missing(given, poorly, samples.iid)
    table.loc[poorly, [name for name in table.columns if name not in ("#FID", "IID")]] = None
    table["missing"], table["typed_weight"] = given.missing, given.typed
    write_tsv(table, out)


def _tell_missing(given: CohortInput, poorly: NDArray[np.bool_], names: NDArray[np.object_]) -> None:
    """Says how many genotypes are missing, and of whom too many for a prediction."""
    total = given.missing.size * given.report["model_variants"]
    logger.info(
        "%d of %d genotypes at the model's variants are missing, %d of %d of one person at most",
        given.missing.sum(), total, given.missing.max(initial=0), given.report["model_variants"],
    )  # fmt: skip
    little = given.typed < _LITTLE
    if little.any():
        told = (
            "their predictions are NA" if poorly.any() else "their predictions are hardly more than the mean"
        )
        logger.warning(
            "%d of %d people are typed at under half of the model's weight (first: '%s'): %s "
            "(data.min_typed_weight)",
            little.sum(), len(little), names[little][0], told,
        )  # fmt: skip

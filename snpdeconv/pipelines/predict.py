"""The predict command: a registered model and another cohort in, a table of predictions out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.config import Config
from snpdeconv.device import choose_device
from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import write_json
from snpdeconv.genetics.phenotypes import Trait
from snpdeconv.genetics.samples import Samples
from snpdeconv.interpret.ranking import write_tsv
from snpdeconv.pipelines.bundle import Bundle, load_bundle
from snpdeconv.pipelines.cohort_input import (
    CohortInput,
    bundle_predictions,
    cohort_input,
    observed_trait,
    truth_of,
    usable_rows,
)
from snpdeconv.pipelines.dataset import open_cohort
from snpdeconv.pipelines.evaluation import (
    Figures,
    measured,
    prediction_table,
)
from snpdeconv.pipelines.provenance import (
    file_facts,
    finish_run,
    model_facts,
    model_tags,
    run_tags,
    tracing,
    tracked_run,
)
from snpdeconv.pipelines.report import tracked
from snpdeconv.tracking.home import cache_dir
from snpdeconv.tracking.registry import download, resolve, version_tags

logger = logging.getLogger(__name__)

_DEFAULT_BATCH = 64
_LITTLE = 0.5


@dataclass(frozen=True)
class PredictResult:
    """What was predicted.

    Attributes:
        version: The version that `NAME@champion` meant at this time.
        predictions: The table.
        variants: How the model's variants were found in the cohort.
        missing_genotypes: Genotypes at the model's variants that are missing, over all samples.
        num_na: Samples without a prediction, because too little of the model's weight is typed.
        num_left_out: Samples of the cohort that are not asked for, or lack a covariate.
        num_measured: Samples with a prediction and a trait, where there is a table of it.
        num_without_trait: Samples with a prediction and no trait.
        metrics: Value, low and high of the 95 % interval of each metric, where there is a table.
    """

    model: str
    version: int
    predictions: str
    num_samples: int
    variants: dict[str, int]
    missing_genotypes: int
    num_na: int
    num_left_out: int = 0
    num_measured: int = 0
    num_without_trait: int = 0
    metrics: dict[str, Figures] | None = None


def predict(
    config: Config,
    *,
    model: str,
    genotypes: str,
    out: Path,
    covariates: Path | None = None,
    phenotypes: Path | None = None,
    trait: str | None = None,
    keep: Path | None = None,
    remove: Path | None = None,
) -> PredictResult:
    """Predicts every sample of a cohort.

    Args:
        config: Its device, batch size and compilation are used; the precision is the one of the training.
        model: NAME@alias or NAME/version.
        genotypes: The cohort.
        out: Table to write.
        covariates: Table of covariates, where the model takes one; who lacks one is left out.
        phenotypes: Table of the trait as it is known, to measure the predictions by.
        trait: Its column; the model's by default.
        keep: List of the only samples wanted.
        remove: List of samples not wanted.

    Raises:
        UserError: No such model, or a cohort that it cannot be used on.
    """
    if trait is not None and phenotypes is None:
        raise ConfigError("there is no table", where="--trait", hint="give --phenotypes too")
    if out.is_dir():
        raise ConfigError("is a folder", where=out, hint="give the path of the table to write")
    tables = {"covariates": covariates, "phenotypes": phenotypes, "keep": keep, "remove": remove}
    paths = {name: None if path is None else str(path) for name, path in tables.items()}
    with tracing() as trace:
        reference = resolve(model)
        bundle = load_bundle(download(reference, cache_dir=cache_dir()))
        logger.info("%s is %s version %d", model, reference.name, reference.version)
        cohort = open_cohort(genotypes, data=bundle.config.data)
        rows = usable_rows(
            bundle,
            cohort,
            rows=np.arange(len(cohort.samples)),
            covariates=paths["covariates"],
            keep=paths["keep"],
            remove=paths["remove"],
            where=genotypes,
        )
        given = cohort_input(
            bundle,
            cohort,
            rows=rows,
            covariates=paths["covariates"],
            where=genotypes,
            check=config.data.check_frequencies,
        )
        poorly = given.typed < config.data.min_typed_weight
        truth = None
        if paths["phenotypes"] is not None:
            if version_tags(reference.name, reference.version).get("snpdeconv.data") == cohort.digest:
                logger.warning(
                    "%s: the model was trained on people of this cohort; metrics of them say nothing of "
                    "others",
                    genotypes,
                )
            observed = observed_trait(
                bundle,
                cohort,
                phenotypes=paths["phenotypes"],
                column=trait or bundle.trait,
                where=genotypes,
                missing_codes=config.data.missing_codes,
            )
            truth = _truth(observed.among(rows[~poorly]), bundle, rows, where=paths["phenotypes"])
        inputs = {"genotypes": {"path": str(Path(genotypes).absolute()), "sha256": cohort.digest}}
        inputs |= {name: file_facts(Path(path)) for name, path in paths.items() if path is not None}
        trace.keep(
            out.parent,
            stem=out.stem,
            model=model_facts(reference),
            inputs=inputs,
            trait=bundle.trait,
            settings=config.model_dump(mode="json"),
        )
        tags = run_tags(
            config,
            "predict",
            folder=out.parent,
            data=cohort.digest,
            trait=bundle.trait,
            **model_tags(reference),
        )
        name = f"{reference.name} {reference.version} predict"
        with tracked_run(config.tracking, name=name, params=config.flat(), tags=tags) as run:
            device = choose_device(config.resources.device)
            if config.precision.compile and device.type == "cuda":
                bundle.model.compile()
            asked = config.training.batch_size
            batch_size = _DEFAULT_BATCH if asked == "auto" else asked
            predictions = bundle_predictions(bundle, given, batch_size=batch_size, device=device)
            _write(bundle, given, predictions, cohort.samples.take(rows), poorly=poorly, out=out)
            results = {"predictions": file_facts(out)}
            result = PredictResult(
                model=reference.name,
                version=reference.version,
                predictions=str(out),
                num_samples=len(rows),
                variants=given.report,
                missing_genotypes=int(given.missing.sum()),
                num_na=int(poorly.sum()),
                num_left_out=len(cohort.samples) - len(rows),
            )
            if truth is not None:
                result = _measure(config, bundle, result, predictions, truth, out=out)
                results["metrics"] = file_facts(_metrics_path(out))
            trace.add(results=results)
            found = {f"variants/{name}": count for name, count in given.report.items()}
            found["missing_genotypes"] = result.missing_genotypes
            run.log_metrics(0, {"people": len(rows), **found, **tracked({"test": result.metrics})})
            if config.tracking.log_predictions:
                run.log_artifact(out)
            finish_run(run, config.tracking)
            trace.add(mlflow_run=run.run_id)
        return result


def _truth(trait: Trait, bundle: Bundle, rows: NDArray[np.int64], *, where: str) -> NDArray[np.float64]:
    """(n,) the trait of some rows of a cohort, classes as the model numbers them; NaN where there is none."""
    if not len(trait.rows):
        raise InputError("nobody with a trait has a prediction", where=where, hint="leave the table out")
    truth = np.full(len(rows), np.nan)
    truth[np.searchsorted(rows, trait.rows)] = truth_of(trait, bundle, where=where)
    return truth


def _metrics_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.metrics.json")


def _measure(
    config: Config,
    bundle: Bundle,
    result: PredictResult,
    predictions: NDArray[np.float64],
    truth: NDArray[np.float64],
    *,
    out: Path,
) -> PredictResult:
    """Writes the metrics of those whose trait is known."""
    known = ~np.isnan(truth)
    figures = measured(bundle.kind, predictions[known], truth[known], seed=config.training.seed)
    result = replace(
        result,
        metrics=figures,
        num_measured=int(known.sum()),
        num_without_trait=result.num_samples - result.num_na - int(known.sum()),
    )
    people = {
        "measured": result.num_measured,
        "without_trait": result.num_without_trait,
        "without_prediction": result.num_na,
        "left_out": result.num_left_out,
    }
    write_json(_metrics_path(out), {"test": figures, "people": people})
    return result


def _write(
    bundle: Bundle,
    given: CohortInput,
    predictions: NDArray[np.float64],
    samples: Samples,
    *,
    poorly: NDArray[np.bool_],
    out: Path,
) -> None:
    table = prediction_table(samples, predictions, kind=bundle.kind, classes=bundle.classes)
    _tell_missing(given, poorly, samples.iid)
    table.loc[poorly, [name for name in table.columns if name not in ("#FID", "IID")]] = None
    table["missing"], table["typed_weight"] = given.missing, given.typed
    write_tsv(table, out)


def _tell_missing(given: CohortInput, poorly: NDArray[np.bool_], names: NDArray[np.object_]) -> None:
    """Says how many genotypes are missing, and of which samples too many for a prediction."""
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

"""Another cohort brought to the form that a trained model takes, and what the model predicts of it.

Shapes: N samples, V variants, S slots.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from snpdeconv.config import Config
from snpdeconv.device import choose_device, choose_precision
from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import write_json
from snpdeconv.genetics.cohort import Cohort
from snpdeconv.genetics.harmonise import apply_match, check_frequencies, match_variants
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.phenotypes import CovariateTable, Trait, load_trait, read_covariates
from snpdeconv.genetics.qc import wanted_samples
from snpdeconv.genetics.samples import MissingCodes, Samples
from snpdeconv.interpret.ranking import write_tsv
from snpdeconv.pipelines.bundle import Bundle, load_bundle
from snpdeconv.pipelines.dataset import open_cohort
from snpdeconv.pipelines.evaluation import (
    Figures,
    logits,
    measured,
    prediction_table,
    predictions_from,
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

_CODES_AT_ONCE = 2**24
_DEFAULT_BATCH = 64
_LITTLE = 0.5


@dataclass(frozen=True)
class CohortInput:
    """Samples as a model sees them.

    Attributes:
        packed: (N, S / 4) genotypes in slot order, counted as the model counts them.
        covariates: (N, C) float32.
        report: How the model's variants were found in the cohort.
        missing: (N,) how many of the model's variants each sample has no genotype for.
        typed: (N,) share of the model's weight that rests on variants that a sample is typed at.
    """

    packed: NDArray[np.uint8]
    covariates: NDArray[np.float32]
    report: dict[str, int]
    missing: NDArray[np.int64]
    typed: NDArray[np.float64]


def variant_weight(bundle: Bundle) -> NDArray[np.float64]:
    """(V,) share of a model's linear part that rests on each variant: how far it moves predictions.

    The standard deviation over genotypes of what a variant adds, summed over outputs; a pair counts for both.
    """
    with torch.no_grad():
        frequency = torch.from_numpy(np.nan_to_num(bundle.frequency, nan=0.5))
        shares = torch.stack([(1 - frequency) ** 2, 2 * frequency * (1 - frequency), frequency**2])
        per_slot = torch.full((3, bundle.layout.num_slots), 1 / 3, dtype=torch.float64)
        per_slot[:, bundle.layout.slot_of_variant] = shares
        model = bundle.model
        num_slots = bundle.layout.num_slots
        codes = torch.arange(3)[:, None].expand(3, num_slots).contiguous()
        encoded = model.encode(codes).double()  # (3, S, C)
        wide = model.wide.weight.double().reshape(model.num_outputs, encoded.shape[2], -1)[..., :num_slots]
        added = torch.einsum("gsc,ocs->ogs", encoded, wide * model.wide.scale)
        weight = _spread(added, per_slot).sum(0)
        if model.sparse is not None:
            part = model.sparse
            single = part.value.double()[..., :3].transpose(1, 2)  # (O, 3, U)
            weight.index_add_(0, part.slot, _spread(single, per_slot[:, part.slot]).sum(0))
            if part.pair.shape[1]:
                sides = [
                    _spread(value.double()[:, :3].t()[None], per_slot[:, slot])[0]
                    for slot, value in zip(part.pair, part.pair_value, strict=True)
                ]
                joint = sides[0] * sides[1] * part.pair_weight.double().abs().sum(0)
                for slot in part.pair:
                    weight.index_add_(0, slot, joint)
    held: NDArray[np.float64] = weight[bundle.layout.slot_of_variant].numpy()
    return held / held.sum() if held.sum() > 0 else np.full(len(held), 1 / max(1, len(held)))


def _spread(values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Standard deviations of (O, 3, S) values of three genotypes, given their (3, S) shares: (O, S)."""
    mean = (values * shares).sum(1, keepdim=True)
    return ((values - mean) ** 2 * shares).sum(1).sqrt()


def _typed(
    genotypes: PackedGenotypes, weight: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(N,) genotypes missing of each sample, and the sum of the (V,) weights at which there is one."""
    typed = np.empty(genotypes.num_samples)
    missing = np.empty(genotypes.num_samples, dtype=np.int64)
    step = max(1, _CODES_AT_ONCE // max(1, genotypes.num_variants))
    for start in range(0, len(typed), step):
        piece = slice(start, start + step)
        called = genotypes.codes(rows=piece) != MISSING
        typed[piece] = called @ weight
        missing[piece] = called.shape[1] - called.sum(axis=1)
    return missing, typed


def observed_trait(
    bundle: Bundle,
    cohort: Cohort,
    *,
    phenotypes: str,
    column: str,
    where: str,
    missing_codes: MissingCodes = "auto",
) -> Trait:
    """Another cohort's trait, read as the kind of trait that the model has; `where` names the cohort."""
    return load_trait(
        phenotypes,
        column=column,
        samples=cohort.samples,
        trait_type=bundle.kind,
        min_class_size=1,
        missing_codes=bundle.config.data.missing_codes if missing_codes == "auto" else missing_codes,
        cohort=where,
    )


def truth_of(trait: Trait, bundle: Bundle, *, where: str) -> NDArray[np.float64] | NDArray[np.int64]:
    """(n,) values of a quantity, or classes as the model numbers them."""
    if bundle.kind == "quantitative":
        return trait.values
    known = {name: place for place, name in enumerate(bundle.classes)}
    place = np.array([known.get(name, -1) for name in trait.classes], dtype=np.int64)
    held = trait.values.astype(np.int64)
    truth: NDArray[np.int64] = place[held]
    if (truth < 0).any():
        raise InputError(
            f"class '{trait.classes[held[truth < 0].min()]}' of trait '{trait.name}' is unknown to the model",
            where=where,
            hint=f"it knows {', '.join(bundle.classes)}; write NA for others",
        )
    return truth


def usable_rows(
    bundle: Bundle,
    cohort: Cohort,
    *,
    rows: NDArray[np.int64],
    covariates: str | None,
    keep: str | None,
    remove: str | None,
    where: str,
) -> NDArray[np.int64]:
    """Those of some (N,) rows of a cohort that are asked for and have the covariates that the model takes."""
    rows = rows[wanted_samples(cohort.samples, keep=keep, remove=remove)[rows]]
    if not len(rows):
        raise InputError("nobody is left", where=keep or remove or where, hint="look at the lists of people")
    table = _covariate_table(bundle, cohort, covariates, where=where)
    return rows if table is None else rows[table.complete(rows)]


def _covariate_table(
    bundle: Bundle, cohort: Cohort, covariates: str | None, *, where: str
) -> CovariateTable | None:
    """The covariates that the model takes; None where it takes none, or there is no table."""
    if bundle.covariate_encoder is None or covariates is None:
        return None
    return read_covariates(
        covariates,
        samples=cohort.samples,
        columns=bundle.covariate_encoder.columns,
        cohort=where,
        missing_codes=bundle.config.data.missing_codes,
    )


def cohort_input(
    bundle: Bundle,
    cohort: Cohort,
    *,
    rows: NDArray[np.int64],
    covariates: str | None,
    where: str,
    check: bool = True,
) -> CohortInput:
    """Matches variants, flips swapped alleles, and makes covariates and components as training did.

    With `check`, a cohort whose allele frequencies contradict the model's is refused.
    """
    counts = cohort.genotypes.counts(rows=rows)
    match = match_variants(
        bundle.variants,
        cohort=cohort.variants,
        model_frequency=bundle.frequency,
        cohort_counts=counts,
        where=where,
    )
    if check:
        check_frequencies(match, model_frequency=bundle.frequency, cohort_counts=counts, where=where)
    for note in match.notes:
        logger.info("%s: %s", where, note)
    genotypes = apply_match(cohort.genotypes, match=match, rows=rows)
    values: list[NDArray[np.float64]] = []
    if bundle.covariate_encoder is not None:
        table = _covariate_table(bundle, cohort, covariates, where=where)
        if table is None:
            names = ", ".join(dict.fromkeys(f.column for f in bundle.covariate_encoder.features))
            raise InputError(
                f"the model takes covariates ({names})",
                where=where,
                hint="give their table with --covariates",
            )
        values.append(table.encoded_by(bundle.covariate_encoder, rows))
    elif covariates is not None:
        logger.warning("%s: the model takes no covariates; the table is not used", covariates)
    if bundle.components is not None:
        values.append(bundle.components.project(genotypes))
    missing, typed = _typed(genotypes, variant_weight(bundle))
    joined = np.hstack(values) if values else np.empty((len(rows), 0))
    return CohortInput(
        packed=genotypes.take(columns=bundle.layout.columns).packed,
        covariates=joined.astype(np.float32),
        report=dict(match.report),
        missing=missing,
        typed=typed,
    )


def bundle_predictions(
    bundle: Bundle, given: CohortInput, *, batch_size: int, device: torch.device
) -> NDArray[np.float64]:
    """(N,) or (N, C) calibrated predictions of a model, in the precision of its training."""
    outputs = logits(
        bundle.model.to(device),
        given.packed,
        given.covariates,
        batch_size=batch_size,
        device=device,
        precision=choose_precision(device, requested=bundle.config.precision.amp),
    )
    return predictions_from(outputs, calibration=bundle.calibration, kind=bundle.kind, scale=bundle.scale)


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

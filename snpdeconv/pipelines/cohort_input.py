"""Another cohort, brought to the form that a trained model takes. Shapes: N samples, V variants, S slots."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from snpdeconv.device import choose_precision
from snpdeconv.errors import InputError
from snpdeconv.genetics.cohort import Cohort
from snpdeconv.genetics.harmonise import apply_match, check_frequencies, match_variants
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.phenotypes import CovariateTable, Trait, load_trait, read_covariates
from snpdeconv.genetics.qc import wanted_samples
from snpdeconv.genetics.samples import MissingCodes
from snpdeconv.pipelines.bundle import Bundle
from snpdeconv.pipelines.evaluation import logits, predictions_from

logger = logging.getLogger(__name__)

_CODES_AT_ONCE = 2**24


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

"""Another cohort, brought to the form that a trained model takes. Shapes: N people, V variants, S slots."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.harmonise import apply_match, match_variants
from snpdeconv.genetics.store import Cohort
from snpdeconv.pipelines.bundle import Bundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CohortInput:
    """People as a model sees them.

    Attributes:
        packed: (N, S / 4) genotypes in slot order, counted as the model counts them.
        covariates: (N, C) float32.
        report: How the model's variants were found in the cohort.
    """

    packed: NDArray[np.uint8]
    covariates: NDArray[np.float32]
    report: dict[str, int]


def cohort_input(
    bundle: Bundle,
    cohort: Cohort,
    *,
    rows: NDArray[np.int64],
    covariates: str | None,
    where: str,
) -> CohortInput:
    """Matches variants, flips swapped alleles, and makes covariates and components as training did.

    Args:
        bundle: The trained model.
        cohort: The other cohort.
        rows: (N,) people wanted.
        covariates: Table of covariates, where the model takes one.
        where: What to call the cohort in messages.

    Raises:
        InputError: Under half of the model's variants are there, or the covariates are missing or do not fit.
    """
    match = match_variants(
        bundle.variants,
        cohort=cohort.variants,
        model_frequency=bundle.frequency,
        cohort_counts=cohort.genotypes.counts(rows=rows),
        where=where,
    )
    for note in match.notes:
        logger.info("%s: %s", where, note)
    genotypes = apply_match(cohort.genotypes, match=match, rows=rows)
    values: list[NDArray[np.float64]] = []
    if bundle.covariate_encoder is not None:
        if covariates is None:
            names = ", ".join(dict.fromkeys(f.column for f in bundle.covariate_encoder.features))
            raise InputError(
                f"the model takes covariates ({names})",
                where=where,
                mend="give their table with --covariates",
            )
        values.append(
            bundle.covariate_encoder.encode(
                Path(covariates),
                samples=cohort.samples,
                rows=rows,
                cohort=where,
                missing_codes=bundle.config.data.missing_codes,
            )
        )
    elif covariates is not None:
        logger.warning("%s: the model takes no covariates; the table is not used", covariates)
    if bundle.components is not None:
        values.append(bundle.components.project(genotypes))
    joined = np.hstack(values) if values else np.empty((len(rows), 0))
    return CohortInput(
        packed=genotypes.take(columns=bundle.layout.columns).packed,
        covariates=joined.astype(np.float32),
        report=dict(match.report),
    )

"""The retrain command: a new model when data, code or settings changed; champion only if it is better.

Champion and challenger are compared on the people that were held out from both: those of the first champion,
whose list travels with every model after it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.config import Config
from snpdeconv.errors import InputError, ResourceError
from snpdeconv.files import write_json
from snpdeconv.genetics.phenotypes import Trait, load_trait
from snpdeconv.genetics.store import Cohort
from snpdeconv.pipelines.bundle import Bundle, held_out_path, load_bundle
from snpdeconv.pipelines.cohort_input import cohort_input
from snpdeconv.pipelines.dataset import open_cohort
from snpdeconv.pipelines.evaluation import predictions_from
from snpdeconv.pipelines.inference import choose_device, logits
from snpdeconv.pipelines.inputs import Inputs
from snpdeconv.pipelines.train import TrainResult, train
from snpdeconv.tracking.home import cache_dir, home
from snpdeconv.tracking.locks import locked
from snpdeconv.tracking.promotion import champion_of, note, promote
from snpdeconv.tracking.registry import check_model_name, download, resolve, version_tags
from snpdeconv.training import distributed
from snpdeconv.training.intervals import Interval, paired_difference
from snpdeconv.training.metrics import MAIN_METRIC
from snpdeconv.training.precision import choose_precision
from snpdeconv.version import code_version

logger = logging.getLogger(__name__)

_BATCH = 64


@dataclass(frozen=True)
class Decision:
    """What a retraining came to.

    Attributes:
        model: The registered name.
        reason: Why there was a training, or why there was none.
        retrained: Whether there was one.
        champion: The version that is champion now.
        compared_with: The version that was champion before.
        challenger: The version that was trained.
        promoted: Whether it took the alias.
        metric: What both were compared by.
        difference: The challenger's metric less the champion's on the held-out people.
        low: Lower bound of the difference's 95 % interval; above 0 the challenger is promoted.
        high: Upper bound.
        num_held_out: People that they were compared on.
    """

    model: str
    reason: str
    retrained: bool
    champion: int | None
    compared_with: int | None = None
    challenger: int | None = None
    promoted: bool = False
    metric: str | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    num_held_out: int = 0


def retrain(
    config: Config, inputs: Inputs, *, model_name: str, out: Path, force: bool = False
) -> Decision | None:
    """Trains a challenger if something changed since the champion, and promotes it if it is better.

    Called on every rank, as `train` is.

    Args:
        config: The settings.
        inputs: The files.
        model_name: Name in the registry.
        out: Folder of the training; one that was interrupted there goes on.
        force: Train although nothing changed.

    Returns:
        What came of it; None on ranks other than the first.

    Raises:
        UserError: As `train`; or the store does not answer, so that nothing can be compared; or another
            retraining of the model runs.
    """
    check_model_name(model_name)
    distributed.init_from_environment(device=choose_device(config.resources.device))
    with ExitStack() as held:

        def planned() -> _Plan:
            held.enter_context(locked(home() / "retrain" / f"{model_name}.lock", wait_s=1.0))
            return _plan(config, inputs, model_name=model_name, out=out, force=force)

        plan = distributed.first_rank_does(planned)
        if plan.reason is None:
            logger.info("%s: nothing changed since version %s", model_name, plan.champion)
            done = Decision(
                model=model_name, reason="nothing changed", retrained=False, champion=plan.champion
            )
            return done if distributed.is_first() else None
        logger.info("%s: training, %s", model_name, plan.reason)
        result = train(config, plan.inputs, model_name=model_name, out=out)
        if result is None:
            return None
        decision = _decide(config, plan, result)
        write_json(out / "decision.json", asdict(decision))
        return decision


@dataclass(frozen=True)
class _Plan:
    champion: int | None
    reason: str | None  # None where there is nothing to do
    inputs: Inputs


def _plan(config: Config, inputs: Inputs, *, model_name: str, out: Path, force: bool) -> _Plan:
    champion = champion_of(model_name)
    if champion is None:
        return _Plan(champion, "there was no champion", inputs)
    cohort = open_cohort(inputs.genotypes, data=config.data)
    # A challenger that was refused would come out the same again.
    known = {champion, resolve(f"{model_name}@challenger").version}
    changed = min(
        (_changes(config, inputs, cohort, tags=version_tags(model_name, version)) for version in known),
        key=len,
    )
    if not changed and not force:
        return _Plan(champion, None, inputs)
    reason = f"changed: {', '.join(changed)}" if changed else "forced"
    held_out = held_out_path(_folder(model_name, champion))
    return _Plan(champion, reason, replace(inputs, held_out=str(held_out)))


def _changes(config: Config, inputs: Inputs, cohort: Cohort, *, tags: Mapping[str, str]) -> list[str]:
    now = {
        "data": ("snpdeconv.inputs", inputs.digest(genotypes_digest=cohort.digest)),
        "code": ("snpdeconv.code", code_version()),
        "settings": ("snpdeconv.settings", config.digest()),
    }
    return [what for what, (tag, value) in now.items() if tags.get(tag) != value]


def _folder(model_name: str, version: int) -> Path:
    return download(resolve(f"{model_name}/{version}"), cache_dir=cache_dir())


def _bundle(model_name: str, version: int) -> Bundle:
    return load_bundle(_folder(model_name, version))


def _decide(config: Config, plan: _Plan, result: TrainResult) -> Decision:
    """Compares the challenger with the champion, and promotes it if it is better."""
    assert plan.reason is not None
    decision = Decision(
        model=result.model,
        reason=plan.reason,
        retrained=True,
        champion=plan.champion,
        compared_with=plan.champion,
        challenger=result.version,
    )
    if plan.champion is None:
        return replace(decision, champion=result.version, promoted=result.version is not None)
    if result.version is None:
        raise ResourceError(
            "the tracking server did not take the challenger, so nothing can be compared",
            where=result.model,
            mend="the same command goes on when it answers",
        )
    compared = compare(
        _bundle(result.model, plan.champion),
        load_bundle(Path(result.paths["model"])),
        cohort=open_cohort(plan.inputs.genotypes, data=config.data),
        inputs=plan.inputs,
        config=config,
    )
    decision = replace(
        decision,
        metric=compared.metric,
        difference=_finite(compared.difference.value),
        low=_finite(compared.difference.low),
        high=_finite(compared.difference.high),
        num_held_out=compared.num_people,
    )
    tags = _tags(decision)
    if compared.difference.low > 0:
        promotion = promote(result.model, version=result.version, instead_of=plan.champion, tags=tags)
        decision = replace(decision, champion=promotion.champion, promoted=promotion.done)
    else:
        refused = {"snpdeconv.promotion": "refused: not better by more than the interval"}
        note(result.model, version=result.version, tags=tags | refused)
    logger.info(
        "%s: version %d has %s %+.4f (95 %% interval %+.4f to %+.4f) over version %d on %d people: %s",
        result.model,
        result.version,
        compared.metric,
        compared.difference.value,
        compared.difference.low,
        compared.difference.high,
        plan.champion,
        compared.num_people,
        "promoted" if decision.promoted else "not promoted",
    )
    return decision


@dataclass(frozen=True)
class Comparison:
    """Two models on the same people.

    Attributes:
        metric: What they are compared by.
        difference: The challenger's less the champion's.
        num_people: People held out from both that the cohort still has.
    """

    metric: str
    difference: Interval
    num_people: int


def compare(
    champion: Bundle, challenger: Bundle, *, cohort: Cohort, inputs: Inputs, config: Config
) -> Comparison:
    """Predicts the held-out people with both models.

    Args:
        champion: Its `held_out` people are the ones compared on.
        challenger: Trained without them.
        cohort: Where their genotypes are now.
        inputs: Where their trait is now.
        config: Its device is used.

    Raises:
        InputError: The models are of different traits or classes, or none of the people is in the cohort.
    """
    if (champion.kind, champion.classes) != (challenger.kind, challenger.classes):
        raise InputError(
            f"{challenger.kind} {', '.join(challenger.classes)} cannot be compared with the champion's "
            f"{champion.kind} {', '.join(champion.classes)}",
            where=inputs.trait,
            mend="train it under another name",
        )
    observed = load_trait(
        inputs.phenotypes,
        column=inputs.trait,
        samples=cohort.samples,
        trait_type=champion.kind,
        min_class_size=1,
        missing_codes=champion.config.data.missing_codes,
        cohort=inputs.genotypes,
    )
    chosen = champion.held_out.among(cohort.samples.take(observed.rows))
    if not chosen.any():
        raise InputError(
            "holds none of the people that the champion was tested on",
            where=inputs.genotypes,
            mend="train it under another name",
        )
    people = replace(observed, rows=observed.rows[chosen], values=observed.values[chosen])
    new, old = (_predictions(bundle, cohort, people, inputs, config) for bundle in (challenger, champion))
    metric = MAIN_METRIC[champion.kind]
    difference = paired_difference(
        champion.kind, new, old, _truth(people, champion), metric=metric, seed=config.training.seed
    )
    return Comparison(metric=metric, difference=difference, num_people=int(chosen.sum()))


def _predictions(
    bundle: Bundle, cohort: Cohort, people: Trait, inputs: Inputs, config: Config
) -> NDArray[np.float64]:
    given = cohort_input(
        bundle,
        cohort,
        rows=people.rows,
        covariates=inputs.covariates if bundle.covariate_encoder is not None else None,
        where=inputs.genotypes,
    )
    device = choose_device(config.resources.device)
    outputs = logits(
        bundle.model.to(device),
        given.packed,
        given.covariates,
        batch_size=_BATCH,
        device=device,
        precision=choose_precision(device, requested=bundle.config.precision.amp),
    )
    return predictions_from(outputs, calibration=bundle.calibration, kind=bundle.kind, scale=bundle.scale)


def _truth(people: Trait, bundle: Bundle) -> NDArray[np.float64] | NDArray[np.int64]:
    if bundle.kind == "quantitative":
        return people.values
    place = np.array([bundle.classes.index(name) for name in people.classes], dtype=np.int64)
    truth: NDArray[np.int64] = place[people.values.astype(np.int64)]
    return truth


def _tags(decision: Decision) -> dict[str, str]:
    return {
        "snpdeconv.compared_with": str(decision.compared_with),
        "snpdeconv.compared_by": str(decision.metric),
        "snpdeconv.difference": f"{decision.difference} ({decision.low} to {decision.high})",
        "snpdeconv.num_held_out": str(decision.num_held_out),
        "snpdeconv.reason": decision.reason,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

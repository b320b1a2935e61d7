"""The retrain command: a new model when data, code or settings changed; champion only if it is better.

Champion and challenger are compared on the samples that were held out from both: those of the first champion,
whose list travels with every model after it. Promoted is what is better beyond chance, the noise of training
and the number of looks at a champion.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from snpdeconv.config import Config
from snpdeconv.device import choose_device, choose_precision
from snpdeconv.errors import InputError, ResourceError
from snpdeconv.files import write_json
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.cohort import Cohort
from snpdeconv.genetics.phenotypes import Trait
from snpdeconv.pipelines.bundle import Bundle, held_out_path, load_bundle, make_bundle
from snpdeconv.pipelines.dataset import open_cohort, prepare
from snpdeconv.pipelines.evaluation import evaluate_test, finite
from snpdeconv.pipelines.fit import choose_batch_sizes, fit, make_training_loss
from snpdeconv.pipelines.predict import (
    bundle_predictions,
    cohort_input,
    observed_trait,
    truth_of,
    usable_rows,
)
from snpdeconv.pipelines.provenance import tracing
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.pipelines.train import TrainResult, train
from snpdeconv.tracking.home import cache_dir, home
from snpdeconv.tracking.registry import (
    champion_of,
    check_model_name,
    count_look,
    download,
    note,
    promote,
    resolve,
    version_tags,
)
from snpdeconv.tracking.spool import locked
from snpdeconv.training import distributed
from snpdeconv.training.data import place_genotypes
from snpdeconv.training.metrics import MAIN_METRIC, paired_draws
from snpdeconv.version import code_version

logger = logging.getLogger(__name__)

LEVEL = 0.05  # of all looks at one champion together
POWER = 0.8
_BATCH = 64
# Variance of the true difference between two trainings of one recipe, in units of that by which the samples
# judged blur it. Measured on one simulated cohort of each size, on seeds for choices: .2 to 1.3, most with
# a sparse part on a few hundred samples.
TRAINING_NOISE = 2.0


@dataclass(frozen=True)
class Verdict:
    """What a look at a challenger says.

    Attributes:
        difference: The challenger's metric less the champion's.
        low: Lower bound of the difference at the look's level; above 0, the challenger is better.
        high: Upper bound.
        look: Which look at this champion it was, from 1.
        level: One-sided, of this look.
        training_noise: Standard deviation of the difference between two trainings of the challenger; None
            where the samples alone did not speak for it, and no twin was trained.
        detectable: The true gain that such a look would find in four of five cases.
    """

    difference: float
    low: float
    high: float
    look: int
    level: float
    training_noise: float | None
    detectable: float

    @property
    def is_better(self) -> bool:
        """Whether the challenger should take the champion's place."""
        return self.low > 0


def level_of(look: int) -> float:
    """The one-sided level of a look, from 1; all of them sum to `LEVEL`."""
    return LEVEL / (look * (look + 1))


def judge(
    kind: TraitKind,
    *,
    challenger: ArrayLike,
    champion: ArrayLike,
    truth: ArrayLike,
    metric: str,
    look: int,
    twin: Callable[[], ArrayLike],
    seed: int,
    num_resamples: int = 2000,
) -> Verdict:
    """Compares two models on the (N,) samples that neither was trained on.

    `twin` gives the predictions of the challenger's recipe trained with another seed; it is asked only where
    the challenger would be promoted without.
    """
    num_samples = len(np.asarray(truth))
    level = level_of(look)
    quantile = float(stats.t.isf(level, max(num_samples - 1, 1)))

    def draws(one: ArrayLike, other: ArrayLike) -> tuple[float, NDArray[np.float64]]:
        return paired_draws(kind, one, other, truth, metric=metric, num_resamples=num_resamples, seed=seed)

    difference, drawn = draws(challenger, champion)
    low_centre = high_centre = difference
    sd, noise = float(drawn.std()), None
    if difference - quantile * sd > 0:
        of_twin, drawn_twin = draws(twin(), champion)
        # The challenger alone was chosen for being high: the recipe's mean is what the next one will have.
        mean = (difference + of_twin) / 2
        low_centre, high_centre = min(difference, mean), max(difference, mean)
        noise = math.sqrt(TRAINING_NOISE) * float((drawn - drawn_twin).std())
        sd = math.hypot(float(((drawn + drawn_twin) / 2).std()), noise)
    return Verdict(
        difference=difference,
        low=low_centre - quantile * sd,
        high=high_centre + quantile * sd,
        look=look,
        level=level,
        training_noise=noise,
        detectable=(quantile + float(stats.norm.ppf(POWER))) * sd,
    )


@dataclass(frozen=True)
class Decision:
    """What a retraining came to.

    Attributes:
        reason: Why there was a training, or why there was none.
        champion: The version that is champion now.
        compared_with: The version that was champion before.
        challenger: The version that was trained.
        promoted: Whether it took the alias.
        metric: What both were compared by; the figures after it are those of `Verdict`.
        num_held_out: Samples that they were compared on.
        look: As in `Verdict`; 0 where there was no comparison.
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
    look: int = 0
    level: float | None = None
    training_noise: float | None = None
    detectable: float | None = None


def retrain(
    config: Config, inputs: Inputs, *, model_name: str, out: Path, force: bool = False
) -> Decision | None:
    """Trains a challenger if something changed since the champion, and promotes it if it is better.

    Called on every rank, as `train` is.

    Args:
        config: The settings.
        inputs: The files.
        model_name: Name in the registry.
        out: Folder of the training; one that was interrupted there resumes.
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
        trace = held.enter_context(tracing())

        def planned() -> _Plan:
            held.enter_context(locked(home() / "retrain" / f"{model_name}.lock", wait_s=1.0))
            return _plan(config, inputs, model_name=model_name, force=force)

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
        twin_folder = out / "twin"
        decision = _decide(config, plan, result, twin_folder=twin_folder)
        write_json(out / "decision.json", asdict(decision))
        shutil.rmtree(twin_folder, ignore_errors=True)
        trace.add(decision=asdict(decision))
        return decision


@dataclass(frozen=True)
class _Plan:
    champion: int | None
    reason: str | None  # None where there is nothing to do
    inputs: Inputs


def _plan(config: Config, inputs: Inputs, *, model_name: str, force: bool) -> _Plan:
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


def _decide(config: Config, plan: _Plan, result: TrainResult, *, twin_folder: Path) -> Decision:
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
            hint="the same command resumes when it answers",
        )
    champion = load_bundle(_folder(result.model, plan.champion))
    challenger = load_bundle(Path(result.paths["model"]))
    cohort = open_cohort(plan.inputs.genotypes, data=config.data)
    judged = jointly_held_out(champion, challenger, cohort=cohort, inputs=plan.inputs)
    look = count_look(result.model, champion=plan.champion, challenger=result.version)
    metric = MAIN_METRIC[champion.kind]

    def predicted(bundle: Bundle) -> NDArray[np.float64]:
        return predictions_of(bundle, cohort, judged, plan.inputs, config)

    verdict = judge(
        champion.kind,
        challenger=predicted(challenger),
        champion=predicted(champion),
        truth=truth_of(judged, champion, where=plan.inputs.phenotypes),
        metric=metric,
        look=look,
        twin=lambda: predicted(train_alone(_reseeded(config), plan.inputs, cohort, folder=twin_folder)),
        seed=config.training.seed,
    )
    figures: dict[str, Any] = {name: finite(value) for name, value in asdict(verdict).items()}
    decision = replace(
        decision,
        metric=metric,
        num_held_out=len(judged.rows),
        **figures,
    )
    tags = _tags(decision)
    if verdict.is_better:
        promotion = promote(result.model, version=result.version, instead_of=plan.champion, tags=tags)
        decision = replace(decision, champion=promotion.champion, promoted=promotion.done)
    else:
        refused = {"snpdeconv.promotion": "refused: not better by more than the interval"}
        note(result.model, version=result.version, tags=tags | refused)
    logger.info(
        "%s: version %d has %s %+.4f over version %d on %d people; look %d at this champion: interval %+.4f "
        "to %+.4f (one-sided level %.3g, %s): %s; four of five such looks find a gain of %.4f",
        result.model,
        result.version,
        metric,
        verdict.difference,
        plan.champion,
        len(judged.rows),
        look,
        verdict.low,
        verdict.high,
        verdict.level,
        "people alone"
        if verdict.training_noise is None
        else f"training noise {verdict.training_noise:.4f} included",
        "promoted" if decision.promoted else "not promoted",
        verdict.detectable,
    )
    return decision


def _reseeded(config: Config) -> Config:
    """The same recipe with another seed: what its training differs by is noise."""
    training = config.training.model_copy(update={"seed": config.training.seed + 1})
    logger.info("training a twin of the challenger with seed %d, to see what a seed can do", training.seed)
    return config.model_copy(update={"training": training})


def train_alone(config: Config, inputs: Inputs, cohort: Cohort, *, folder: Path) -> Bundle:
    """A model that is neither ranked nor registered, trained by this process; resumes where it stopped."""
    device = choose_device(config.resources.device)
    precision = choose_precision(device, requested=config.precision.amp)
    dataset = prepare(config, inputs, cohort=cohort)
    batch_size, micro_batch_size = choose_batch_sizes(config, dataset, precision, device=device)
    fitted = fit(
        config,
        dataset,
        genotypes=place_genotypes(dataset.packed, device=device),
        loss=make_training_loss(config.training, dataset),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        device=device,
        precision=precision,
        checkpoint_dir=folder / "checkpoints",
        log_metrics=None,
    )
    evaluation = evaluate_test(
        fitted.model,
        dataset,
        batch_size=_BATCH,
        device=device,
        precision=precision,
        seed=config.training.seed,
    )
    assert evaluation.calibration is not None
    return make_bundle(fitted.model.cpu(), dataset, calibration=evaluation.calibration, config=config)


def jointly_held_out(champion: Bundle, challenger: Bundle, *, cohort: Cohort, inputs: Inputs) -> Trait:
    """The samples that both models were tested on, with their trait as it is now.

    Those that the challenger's training left out for their genotypes are no judges, nor are those that lack a
    covariate that one of both takes.
    """
    if (champion.kind, champion.classes) != (challenger.kind, challenger.classes):
        raise InputError(
            f"{challenger.kind} {', '.join(challenger.classes)} cannot be compared with the champion's "
            f"{champion.kind} {', '.join(champion.classes)}",
            where=inputs.trait,
            hint="train it under another name",
        )
    observed = observed_trait(
        champion, cohort, phenotypes=inputs.phenotypes, column=inputs.trait, where=inputs.genotypes
    )
    present = cohort.samples.take(observed.rows)
    chosen = champion.held_out.among(present) & challenger.held_out.among(present)
    if not chosen.any():
        raise InputError(
            "holds none of the people that the champion was tested on",
            where=inputs.genotypes,
            hint="train it under another name",
        )
    rows = observed.rows[chosen]
    for bundle in (champion, challenger):  # each takes covariates of its own
        rows = usable_rows(
            bundle,
            cohort,
            rows=rows,
            covariates=inputs.covariates,
            keep=inputs.keep,
            remove=inputs.remove,
            where=inputs.genotypes,
        )
    return observed.among(rows)


def predictions_of(
    bundle: Bundle, cohort: Cohort, judged: Trait, inputs: Inputs, config: Config
) -> NDArray[np.float64]:
    """What a model predicts of some samples of a cohort."""
    given = cohort_input(
        bundle,
        cohort,
        rows=judged.rows,
        covariates=inputs.covariates if bundle.covariate_encoder is not None else None,
        where=inputs.genotypes,
        check=config.data.check_frequencies,
    )
    device = choose_device(config.resources.device)
    return bundle_predictions(bundle, given, batch_size=_BATCH, device=device)


def _tags(decision: Decision) -> dict[str, str]:
    return {
        "snpdeconv.compared_with": str(decision.compared_with),
        "snpdeconv.compared_by": str(decision.metric),
        "snpdeconv.difference": f"{decision.difference} ({decision.low} to {decision.high})",
        "snpdeconv.num_held_out": str(decision.num_held_out),
        "snpdeconv.reason": decision.reason,
        "snpdeconv.look_level": str(decision.level),
        "snpdeconv.training_noise": str(decision.training_noise),
    }

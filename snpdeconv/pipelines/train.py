"""The train command: a cohort in; test metrics, ranked SNPs, plots and a registered model out.

Every step can be killed and done again: what is finished is found in the run's folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from snpdeconv.config import Config, Stage
from snpdeconv.device import Precision, choose_device, choose_precision
from snpdeconv.pipelines.bundle import make_bundle, save_bundle
from snpdeconv.pipelines.dataset import Dataset, open_cohort_together, prepare
from snpdeconv.pipelines.evaluation import Evaluation, evaluate_test, linear_part_only
from snpdeconv.pipelines.fit import Fitted, choose_batch_sizes, fit, make_training_loss
from snpdeconv.pipelines.linear_part import searches_pairs
from snpdeconv.pipelines.provenance import (
    Trace,
    file_facts,
    finish_run,
    input_facts,
    remember_inputs,
    run_tags,
    tracing,
    tracked_run,
)
from snpdeconv.pipelines.report import (
    held_out_metrics,
    log_artifacts,
    ranking_metrics,
    tracked,
    write_results,
)
from snpdeconv.pipelines.run_folder import Inputs, RunFolder, run_settings
from snpdeconv.pipelines.score import Network, RankingInput, score_variants
from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.registry import check_model_name
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.training import distributed
from snpdeconv.training.data import place_genotypes
from snpdeconv.training.preemption import PreemptionSignal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run_id: Its name in MLflow; None until the tracking server has been reached.
        version: The registered version; None until the tracking server has been reached.
        test: Metrics of the test samples: value, low and high of the 95 % interval.
        paths: Where the results are, by what they are.
        validation: Metrics at the best epoch; None where undefined, as the AUROC of a single class.
        added: What the network adds to its linear part, and the genotypes to the covariates, as in `test`.
    """

    run_id: str | None
    model: str
    version: int | None
    test: dict[str, dict[str, float | None]]
    paths: dict[str, str]
    validation: dict[str, float | None] = field(default_factory=dict)
    added: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)


def train(
    config: Config, inputs: Inputs, *, model_name: str, out: Path | None, until: Stage = "register"
) -> TrainResult | None:
    """Trains, tests, ranks and registers; called on every rank.

    All ranks train, and share the work of ranking. The first one alone reads what others made, writes and
    tracks.

    Args:
        config: The settings.
        inputs: The files.
        model_name: Name in the registry.
        out: Folder of the run; a run that was interrupted there resumes. By default a new one in this folder.
        until: The last stage to do. What earlier calls did is not done again; the run stays open before
            the last one is done.

    Returns:
        What the run came to so far; None on ranks other than the first.

    Raises:
        UserError: Something to mend: input, settings, resources, or a loss that is not finite.
    """
    check_model_name(model_name)
    tracking_uri()  # a mistyped address ends the run here, before any work
    wanted = choose_device(config.resources.device)
    place = distributed.init_from_environment(device=wanted)
    try:
        with tracing() as trace:
            result = _train(
                config, inputs, model_name=model_name, out=out, device=place.device, until=until, trace=trace
            )
            if result is not None:
                files = {name: Path(path) for name, path in result.paths.items() if Path(path).is_file()}
                trace.add(
                    mlflow_run=result.run_id,
                    version=result.version,
                    results={name: file_facts(path) for name, path in files.items()},
                )
            return result
    finally:
        distributed.shut_down()


def _train(
    config: Config,
    inputs: Inputs,
    *,
    model_name: str,
    out: Path | None,
    device: torch.device,
    until: Stage,
    trace: Trace,
) -> TrainResult | None:
    precision = _agreed_precision(device, requested=config.precision.amp)
    path = (out or Path(f"{model_name}-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    folder = RunFolder(path, settings=run_settings(config, model_name=model_name))
    with ExitStack() as held:
        folder.state = distributed.first_rank_does(lambda: held.enter_context(folder).state)
        cohort = open_cohort_together(inputs.genotypes, data=config.data)
        inputs_digest = distributed.all_or_none_do(lambda: inputs.digest(genotypes_digest=cohort.digest))
        if "result" in folder.state or "ranked" in folder.state:
            distributed.first_rank_does(lambda: folder.begin(inputs=inputs_digest))
            return _after_ranking(folder, config, until=until, trace=trace)
        dataset = prepare(config, inputs, cohort=cohort)
        loss = make_training_loss(config.training, dataset)

        def begin() -> None:
            folder.begin(inputs=inputs_digest)
            remember_inputs(folder.key, replace(inputs, held_out=None))
            trace.keep(
                path,
                resumed=True,
                model=model_name,
                **input_facts(inputs, cohort),
                covariates=dataset.covariate_names,
                settings=config.model_dump(mode="json"),
            )

        distributed.first_rank_does(begin)
        tags = run_tags(
            config,
            "train",
            folder=path,
            data=cohort.digest,
            inputs=replace(inputs, held_out=None).digest(genotypes_digest=cohort.digest),
            trait=inputs.trait,
            **{f"data.{name}": count for name, count in dataset.report.items()},
        )
        stop = held.enter_context(PreemptionSignal(raises=True))
        runs: list[TrackedRun] = []
        distributed.first_rank_does(
            lambda: runs.append(held.enter_context(_tracked(folder, config, tags, model_name, stop)))
        )
        run = runs[0] if runs else None
        # Before the batch size is measured: the device has that much less for activations.
        genotypes = distributed.all_or_none_do(lambda: place_genotypes(dataset.packed, device=device))
        batch_size, micro_batch_size = distributed.first_rank_does(
            lambda: _batch_sizes(folder, config, dataset, precision, device)
        )
        fitted = fit(
            config,
            dataset,
            genotypes=genotypes,
            loss=loss,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            device=device,
            precision=precision,
            checkpoint_dir=path / "checkpoints",
            log_metrics=None if run is None else run.log_metrics,
            should_stop=stop,
        )
        distributed.first_rank_does(lambda: folder.remember(validated=fitted.validation()))
        if until == "validate":
            return _conclude(run, folder, config, until=until)
        evaluation = distributed.first_rank_does(
            lambda: _test(run, folder, config, dataset, fitted, device=device, precision=precision)
        )
        if until == "train":
            return _conclude(run, folder, config, until=until)
        logger.info("ranking %d SNPs", len(dataset.variants))
        scores = score_variants(
            RankingInput.from_study(dataset),
            methods=(*config.interpretation.methods, "ensemble"),
            config=config,
            device=device,
            network=Network(fitted.model, dataset.layout, dataset.packed, fitted.start_attention),
        )
        if run is None:
            return None
        ranked = ranking_metrics(scores)
        metrics = {**folder.state["tested"], "cohort": dataset.report, **ranked}
        paths = write_results(path, config, dataset, evaluation, scores, fitted, metrics=metrics)
        log_artifacts(run, paths, with_predictions=config.tracking.log_predictions)
        run.log_metrics(len(fitted.history["epoch"]), tracked(ranked))
        folder.remember(ranked={"tags": tags, "paths": paths})
        return _conclude(run, folder, config, until=until)


def _agreed_precision(device: torch.device, *, requested: str) -> Precision:
    """The best that all ranks' devices compute: GPUs of two generations must not train two networks."""
    own = choose_precision(device, requested=requested)
    names = set(distributed.gather_objects(own.name))
    if len(names) == 1:
        return own
    return choose_precision(device, requested="fp32" if "fp32" in names else "fp16")


def _batch_sizes(
    folder: RunFolder, config: Config, dataset: Dataset, precision: Precision, device: torch.device
) -> tuple[int, int | None]:
    """The run's, of a step and of what goes through the model at once; a restart does not measure anew."""
    if "batch_size" not in folder.state:
        batch_size, micro_batch_size = choose_batch_sizes(config, dataset, precision, device=device)
        folder.remember(batch_size=batch_size, micro_batch_size=micro_batch_size)
    return int(folder.state["batch_size"]), folder.state.get("micro_batch_size")


def _test(
    run: TrackedRun | None,
    folder: RunFolder,
    config: Config,
    dataset: Dataset,
    fitted: Fitted,
    *,
    device: torch.device,
    precision: Precision,
) -> Evaluation:
    """Tests the network, its linear part and the covariates alone, and keeps the model; on the first rank."""
    assert run is not None
    how: dict[str, Any] = {
        "batch_size": folder.state["batch_size"],
        "device": device,
        "precision": precision,
        "seed": config.training.seed,
    }
    evaluation = evaluate_test(fitted.model, dataset, **how)
    with linear_part_only(fitted.model) as linear_part:
        linear = evaluate_test(linear_part, dataset, **how)
    assert evaluation.calibration is not None
    # One that an interrupted run has finished stays: it may be registered, and a GPU's rounding would
    # make another version of it.
    if not (folder.path / "model").is_dir():
        bundle = make_bundle(fitted.model.cpu(), dataset, calibration=evaluation.calibration, config=config)
        save_bundle(bundle, folder.path / "model")
        fitted.model.to(device)
    tested = held_out_metrics(dataset, fitted, evaluation, linear, seed=config.training.seed)
    tested["linear_part_searched_pairs"] = float(searches_pairs(config, dataset))
    run.log_metrics(len(fitted.history["epoch"]), tracked(tested))
    folder.remember(tested=tested)
    return evaluation


def _after_ranking(folder: RunFolder, config: Config, *, until: Stage, trace: Trace) -> TrainResult | None:
    """What is left to do of a run that an earlier job has ranked or ended; on the first rank."""
    if not distributed.is_first():
        return None
    if "result" in folder.state:
        result = TrainResult(**folder.state["result"])
        if result.version is not None or "ranked" not in folder.state or until != "register":
            logger.info("%s: this run is complete; nothing to do", folder.path)
            return result
        logger.info("%s: this run is complete, and its model not registered yet", folder.path)
    else:
        trace.keep(folder.path, resumed=True)
    tags = folder.state["ranked"]["tags"]
    with (
        PreemptionSignal(raises=True) as stop,
        _tracked(folder, config, tags, folder.settings["model"], stop) as run,
    ):
        return _conclude(run, folder, config, until=until)


def _conclude(
    run: TrackedRun | None, folder: RunFolder, config: Config, *, until: Stage
) -> TrainResult | None:
    """Registers the model and ends the run, or leaves it open for a later job; on the first rank."""
    if run is None:
        return None
    name, model, tested = folder.settings["model"], folder.path / "model", folder.state.get("tested", {})
    ends = until == "register" or (until == "validate" and "ranked" not in folder.state)
    if until == "register":
        run.register(name, model, tags=folder.state["ranked"]["tags"])
    if ends:
        finish_run(run, config.tracking)
    else:
        run.flush(timeout_s=config.tracking.flush_timeout_s)
    registered = run.registered.get(name)
    kept = {"model": str(model)} if model.is_dir() else {}
    result = TrainResult(
        run_id=run.run_id,
        model=name,
        version=registered.version if registered else None,
        test=tested.get("test", tested),  # earlier versions kept nothing else there
        added={name: tested[name] for name in ("network_adds", "genotypes_add") if name in tested},
        paths=folder.state.get("ranked", {}).get("paths", kept),
        validation=folder.state.get("validated", {}),
    )
    if ends:
        folder.remember(result=asdict(result))
    return result


@contextmanager
def _tracked(
    folder: RunFolder, config: Config, tags: dict[str, str], model_name: str, stop: PreemptionSignal
) -> Iterator[TrackedRun]:
    """The run in MLflow."""
    name = f"{model_name} {config.model.architecture}"
    how: dict[str, Any] = {"params": folder.settings, "tags": tags, "key": folder.key, "stop": stop}
    try:
        with tracked_run(config.tracking, name=name, **how) as run:
            yield run
    except KeyboardInterrupt:
        logger.warning(
            "interrupted; the same command with --out %s resumes from the last checkpoint", folder.path
        )
        raise

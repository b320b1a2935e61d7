"""The train command: a cohort in; test metrics, ranked SNPs, plots and a registered model out.

Every step can be killed and done again: what is finished is found in the run's folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from snpdeconv.config import Config
from snpdeconv.errors import UserError
from snpdeconv.files import write_json, write_text
from snpdeconv.interpret.ranking import build_ranking, write_tsv
from snpdeconv.pipelines.bundle import make_bundle, save_bundle
from snpdeconv.pipelines.dataset import Dataset, open_cohort, prepare
from snpdeconv.pipelines.evaluation import (
    Evaluation,
    evaluate_test,
    network_silenced,
    prediction_table,
)
from snpdeconv.pipelines.fit import choose_batch_size, fit, make_training_loss
from snpdeconv.pipelines.importance import Scores, score_variants
from snpdeconv.pipelines.inference import choose_device
from snpdeconv.pipelines.inputs import Inputs
from snpdeconv.pipelines.report import draw_plots
from snpdeconv.pipelines.run_folder import RunFolder, run_settings
from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.registry import check_model_name
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.training.precision import choose_precision
from snpdeconv.training.preemption import Preempted, PreemptionSignal
from snpdeconv.version import __version__, code_version

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        run_id: Its name in MLflow; None until the tracking server has been reached.
        model: The registered name.
        version: The registered version; None until the tracking server has been reached.
        test: Metrics of the test people: value, low and high of the 95 % interval.
        paths: Where the results are, by what they are.
    """

    run_id: str | None
    model: str
    version: int | None
    test: dict[str, dict[str, float | None]]
    paths: dict[str, str]


def train(config: Config, inputs: Inputs, *, model_name: str, out: Path | None) -> TrainResult:
    """Trains, tests, ranks and registers.

    Args:
        config: The settings.
        inputs: The files.
        model_name: Name in the registry.
        out: Folder of the run; a run that was interrupted there goes on. By default a new one in this folder.

    Raises:
        UserError: Something to mend: input, settings, resources, or a loss that is not finite.
    """
    check_model_name(model_name)
    tracking_uri()  # a mistyped address ends the run here, before any work
    device = choose_device(config.resources.device)
    precision = choose_precision(device, requested=config.precision.amp)
    settings = run_settings(config, model_name=model_name)
    path = (out or Path(f"{model_name}-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    with RunFolder(path, settings=settings) as folder:
        cohort = open_cohort(inputs.genotypes, multiallelic=config.data.multiallelic)
        inputs_digest = inputs.digest(genotypes_digest=cohort.digest)
        if "result" in folder.state:
            folder.begin(inputs=inputs_digest)
            logger.info("%s: this run is complete; nothing to do", path)
            return TrainResult(**folder.state["result"])
        dataset = prepare(config, inputs, cohort=cohort)
        loss = make_training_loss(config, dataset)
        folder.begin(inputs=inputs_digest)
        tags = {
            "snpdeconv.version": __version__,
            "snpdeconv.code": code_version(),
            "snpdeconv.data": dataset.cohort.digest,
            "snpdeconv.inputs": inputs_digest,
            "snpdeconv.folder": str(path),
            "snpdeconv.trait": inputs.trait,
        }
        genotypes = torch.from_numpy(dataset.packed).to(device)
        with _tracked(folder, config, tags, model_name) as run, PreemptionSignal() as stop:
            run.log_metrics(0, {f"data/{name}": float(count) for name, count in dataset.report.items()})
            if "batch_size" not in folder.state:
                folder.remember(batch_size=choose_batch_size(config, dataset, precision))
            fitted = fit(
                config,
                dataset,
                genotypes=genotypes,
                loss=loss,
                batch_size=folder.state["batch_size"],
                device=device,
                precision=precision,
                checkpoint_dir=path / "checkpoints",
                log_metrics=run.log_metrics,
                should_stop=stop,
            )
            how: dict[str, Any] = {
                "batch_size": folder.state["batch_size"],
                "device": device,
                "precision": precision,
                "seed": config.training.seed,
            }
            evaluation = evaluate_test(fitted.model, dataset, **how)
            with network_silenced(fitted.model) as linear_part:
                linear = evaluate_test(linear_part, dataset, **how)
            logger.info("ranking %d SNPs", len(dataset.variants))
            scores = score_variants(
                fitted.model,
                packed=dataset.packed,
                covariates=dataset.covariates,
                target=dataset.target,
                kind=dataset.trait.kind,
                layout=dataset.layout,
                config=config,
                device=device,
                batch_size=folder.state["batch_size"],
            )
            # One that an interrupted run has finished stays: it may be registered, and a GPU's rounding would
            # make another version of it.
            if not (path / "model").is_dir():
                bundle = make_bundle(
                    fitted.model.cpu(), dataset, calibration=evaluation.calibration, config=config
                )
                save_bundle(bundle, path / "model")
            paths = _write_results(path, config, dataset, evaluation, scores, fitted.history, linear=linear)
            _log_artifacts(run, paths)
            run.log_metrics(len(fitted.history["epoch"]), _flat_metrics(evaluation, scores))
            run.register(model_name, path / "model", tags=tags)
            run.finish("FINISHED")
            shipped = run.flush(timeout_s=config.tracking.flush_timeout_s)
        for problem in run.problems:
            logger.warning("the tracking store has refused for good: %s", problem)
        if not shipped:
            logger.warning(
                "results are kept in the spool; `snpdeconv sync` sends them and registers the model"
            )
        registered = run.registered.get(model_name)
        result = TrainResult(
            run_id=run.run_id,
            model=model_name,
            version=registered.version if registered else None,
            test=evaluation.test,
            paths=paths,
        )
        folder.remember(result=asdict(result))
    return result


@contextmanager
def _tracked(
    folder: RunFolder, config: Config, tags: dict[str, str], model_name: str
) -> Iterator[TrackedRun]:
    """The run in MLflow; however the work ends, its status says so."""
    run = TrackedRun.open(
        key=folder.key,
        experiment=config.tracking.experiment,
        name=model_name,
        params=folder.settings,
        tags=tags,
    )
    try:
        yield run
    except Preempted:
        raise  # the run is not over: the same command goes on with it
    except KeyboardInterrupt:
        logger.warning(
            "interrupted; the same command with --out %s goes on from the last checkpoint", folder.path
        )
        run.finish("KILLED")
        raise
    except UserError as error:
        run.set_tags({"snpdeconv.failure": str(error)})
        run.finish("FAILED")
        raise
    except Exception as error:
        run.set_tags({"snpdeconv.failure": repr(error)})
        run.finish("FAILED")
        raise
    finally:
        run.close()


def _write_results(
    path: Path,
    config: Config,
    dataset: Dataset,
    evaluation: Evaluation,
    scores: Scores,
    history: dict[str, list[float]],
    *,
    linear: Evaluation,
) -> dict[str, str]:
    ranking = build_ranking(
        dataset.variants,
        block_names=dataset.blocks.name[dataset.blocks.of_variant],
        scores=scores.by_method,
        final=config.interpretation.rank_by,
    )
    paths = {
        "ranking": path / "ranking.tsv",
        "metrics": path / "metrics.json",
        "predictions": path / "test_predictions.tsv",
        "settings": path / "settings.yaml",
        "model": path / "model",
        "plots": path / "plots",
    }
    best_epoch = int(np.nanargmin(history["val_loss"])) + 1
    write_tsv(ranking, paths["ranking"])
    write_tsv(test_predictions(dataset, evaluation), paths["predictions"])
    write_text(paths["settings"], config.to_yaml())
    write_json(
        paths["metrics"],
        {
            "test": evaluation.test,
            "test_of_linear_part": linear.test,
            "cohort": dataset.report,
            "lambda_gc": _finite(scores.lambda_gc),
            "completeness_gap": _finite(scores.completeness_gap),
            "epochs": len(history["epoch"]),
            "best_epoch": best_epoch,
        },
    )
    draw_plots(
        paths["plots"],
        config=config,
        ranking=ranking,
        dataset=dataset,
        evaluation=evaluation,
        history=history,
        best_epoch=best_epoch,
    )
    return {name: str(place) for name, place in paths.items()}


def test_predictions(dataset: Dataset, evaluation: Evaluation) -> pd.DataFrame:
    """The test people with what was predicted for them and the truth, in the trait's units."""
    rows = dataset.trait.rows[dataset.split.test]
    table = prediction_table(
        dataset.cohort.samples.take(rows),
        evaluation.predictions,
        kind=dataset.trait.kind,
        classes=dataset.trait.classes,
    )
    truth = dataset.trait.values[dataset.split.test]
    table["truth"] = np.array(dataset.trait.classes, dtype=object)[truth] if dataset.trait.classes else truth
    return table


def _flat_metrics(evaluation: Evaluation, scores: Scores) -> dict[str, float]:
    metrics = {
        f"test/{name}" if part == "value" else f"test/{name}_{part}": value
        for name, interval in evaluation.test.items()
        for part, value in interval.items()
        if value is not None
    }
    metrics["marginal/lambda_gc"] = scores.lambda_gc
    if scores.completeness_gap is not None:
        metrics["integrated_gradients/completeness_gap"] = scores.completeness_gap
    return metrics


def _log_artifacts(run: TrackedRun, paths: dict[str, Any]) -> None:
    for name in ("ranking", "metrics", "predictions", "settings"):
        run.log_artifact(Path(paths[name]))
    for plot in sorted(Path(paths["plots"]).glob("*.png")):
        run.log_artifact(plot, folder="plots")
    for checkpoint in sorted((Path(paths["plots"]).parent / "checkpoints").glob("best*")):
        run.log_artifact(checkpoint, folder="checkpoints")


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None

"""Hyper-parameter search: what may be searched, the shared study, and trials in jobs of this machine."""

import json
import resource
import signal
import sys
from pathlib import Path

import mlflow
import optuna
import pytest
from command_line import FAST, FAST_WORDS

from snpdeconv import InterpretableSNPModel
from snpdeconv.config import load_config, preset_names
from snpdeconv.errors import ConfigError, InputError, ResourceError, TrainingError
from snpdeconv.launch import status
from snpdeconv.launch.inputs import find_inputs
from snpdeconv.launch.records import find_record, save
from snpdeconv.launch.scheduler import SlurmState
from snpdeconv.launch.search import TrialJob, submit_search
from snpdeconv.launch.site import Site
from snpdeconv.launch.study import Choice, Range, Study, apply, read_space, study_path
from snpdeconv.pipelines import train as pipeline
from snpdeconv.pipelines.train import TrainResult
from snpdeconv.tracking.registry import list_models
from snpdeconv.training.preemption import Preempted

CONFIG = load_config("small_cpu", overrides=list(FAST))


def finished(path: Path) -> list[optuna.trial.FrozenTrial]:
    """What Optuna itself reads in a journal."""
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    (study,) = optuna.get_all_study_names(optuna.storages.JournalStorage(backend))
    return optuna.load_study(study_name=study, storage=optuna.storages.JournalStorage(backend)).trials


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("architecture", ["cnn", "cnn_transformer", "gnn"])
def test_all_that_is_tried_by_default_is_valid(preset, architecture, tmp_path):
    config = load_config(preset, overrides=[f"model.architecture={architecture}"])
    space = read_space(None, config)
    study = Study(tmp_path / "study")
    for _ in range(12):
        tried = apply(config, study.ask(space, element=0)[1], where="trial")
        assert tried.resources == config.resources
        assert tried.data == config.data


@pytest.mark.parametrize("architecture", ["cnn", "cnn_transformer", "gnn"])
def test_what_is_tried_by_default_changes_the_network(architecture):
    """A model of the architecture differs between the ends of every setting of its size."""
    config = load_config("small_cpu", overrides=[f"model.architecture={architecture}"])
    for key, values in read_space(None, config).items():
        if not key.startswith("model.") or key == "model.dropout":
            continue
        shapes = []
        for value in values.ends():
            model = apply(config, {key: value}, where=key).model
            network = InterpretableSNPModel(
                64, architecture, width=model.width, num_layers=model.num_layers, channels=model.channels
            )
            shapes.append([weights.shape for weights in network.parameters()])
        assert shapes[0] != shapes[-1], key


def test_a_space_of_ones_own(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "training.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "model.num_layers: {low: 1, high: 3}\nmodel.channels: ['4,4', '8,8']\n"
    )
    space = read_space(tmp_path / "s.yaml", CONFIG)
    assert space["model.channels"] == Choice(values=("4,4", "8,8"))
    assert space["training.learning_rate"] == Range(low=1e-4, high=1e-2, log=True)
    study = Study(tmp_path / "study")
    for _ in range(5):
        _, values = study.ask(space, element=0)
        tried = apply(CONFIG, values, where="")
        assert 1e-4 <= tried.training.learning_rate <= 1e-2
        assert isinstance(tried.model.num_layers, int)
        assert tried.model.channels in ((4, 4), (8, 8))


@pytest.mark.parametrize(
    "line, told",
    [
        ("model.dropuot: [0.1, 0.2]", "did you mean 'model.dropout'"),
        ("model.dropout: [0.1, 2.0]", "less than 1"),
        ("model.dropout: [0.1]", "at least 2"),
        ("model.dropout: {low: 0.4, high: 0.1}", "low 0.4 is not below high 0.1"),
        ("model.dropout: {low: 0.0, high: 0.1, log: true}", "low 0.0 has no logarithm"),
        ("model.dropout: 0.3", "a list of values, or"),
        ("data.maf_min: [0.01, 0.05]", "a search cannot change this"),
        ("training.seed: [1, 2]", "a search cannot change this"),
        ("nonsense: [1, 2]", "a search cannot change this"),
        ("", "holds no settings to search"),
    ],
)
def test_a_space_that_is_wrong_is_told_in_one_line(line, told, tmp_path):
    (tmp_path / "s.yaml").write_text(line)
    with pytest.raises(ConfigError, match=told) as error:
        read_space(tmp_path / "s.yaml", CONFIG)
    assert "s.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_outlives_its_processes_and_keeps_what_it_was_told_first(tmp_path):
    space = read_space(None, CONFIG)
    for element, value in ((7, 0.1), (5, 0.5), (6, None), (4, 0.3)):
        study = Study(tmp_path / "study", seed=1)
        number, values = study.ask(space, element=element)
        study.tell(number, value)
        study.tell(number, None if value is None else 0.9)  # a restart that tells again
        assert values.keys() == space.keys()
    trials = finished(tmp_path / "study")
    assert [trial.value for trial in trials] == [0.1, 0.5, None, 0.3]
    assert trials[2].state == optuna.trial.TrialState.FAIL
    assert Study(tmp_path / "study").best() == (5, trials[1].params)


def test_a_trial_given_up_that_goes_on_counts(tmp_path):
    space = read_space(None, CONFIG)
    study = Study(tmp_path / "study")
    number, values = study.ask(space, element=3)
    study.tell(number, None)
    study.tell(number, 0.7)
    assert study.best() == (3, values)


def test_no_trial_no_best(tmp_path):
    assert Study(tmp_path / "study").best() is None


@pytest.fixture
def trial(home, tmp_path, cohort, monkeypatch):
    """A trial's job, with a training that does what the test says."""

    def keep(jobs, record, target, *, needs, after=()):
        save(record)
        keep.jobs = jobs
        return record

    monkeypatch.setattr("snpdeconv.launch.search.enqueue", keep)
    record = submit_search(
        CONFIG, find_inputs(cohort), model_name="m", num_trials=2, space=None, out=tmp_path / "out",
        site=Site(name="local", scheduler="local"), command="",
    )  # fmt: skip
    assert [type(job) for job in keep.jobs] == [TrialJob, TrialJob]

    def ends(what):
        def train(config, inputs, *, model_name, out, until):
            assert until == "validate"
            train.calls.append((config, out))
            if isinstance(what, Exception):
                raise what
            return TrainResult("id", model_name, None, {}, {}, {"val_loss": 1.0, "val_r2": what})

        train.calls = []
        monkeypatch.setattr(pipeline, "train", train)
        return train.calls

    return record, keep.jobs, ends


def test_a_trial_that_fails_is_told_and_one_that_goes_on_is_the_same(trial, tmp_path):
    record, (first, second), ends = trial
    calls = ends(TrainingError("the loss is not finite"))
    with pytest.raises(TrainingError):
        first.work(CONFIG)
    stopped = ends(Preempted(step=3, checkpoint=None))
    with pytest.raises(Preempted):
        second.work(CONFIG)
    states = [one.state.name for one in finished(study_path(record.folder))]
    assert states == ["FAIL", "RUNNING"]
    resumed = ends(0.25)
    result = second.work(CONFIG)
    assert resumed == stopped  # settings and folder
    assert resumed[0] != calls[0]
    assert (result["name"], result["value"]) == ("val/r2", 0.25)
    states = [one.state.name for one in finished(study_path(record.folder))]
    assert states == ["FAIL", "COMPLETE"]
    best = load_config(str(tmp_path / "out" / "settings.yaml"))
    assert best.model_copy(update={"preset": CONFIG.preset}) == resumed[0][0]


def test_the_best_settings_stay_when_a_worse_trial_ends_last(trial, tmp_path):
    _, (first, second), ends = trial
    better = ends(0.5)
    first.work(CONFIG)
    ends(0.1)
    second.work(CONFIG)
    best = load_config(str(tmp_path / "out" / "settings.yaml"))
    assert best.training == better[0][0].training


def test_a_trial_that_died_without_a_word_is_told_to_the_study(trial, monkeypatch):
    record, (first, _), ends = trial
    ends(Preempted(step=1, checkpoint=None))
    with pytest.raises(Preempted):
        first.work(CONFIG)
    dead = {
        0: SlurmState("ended", "NODE_FAIL", "its node failed"),
        1: SlurmState("waiting"),
        None: SlurmState("unknown"),
    }
    monkeypatch.setattr(status, "query_states", lambda records: (records, {record.id: dead}))
    (now,) = status.read_status([record])
    assert [one.state.name for one in finished(study_path(record.folder))] == ["RUNNING"]  # it only reads
    status.settle([record])
    assert [state for state, _ in now.elements] == ["failed", "waiting"]
    assert now.elements[0][1].startswith("its node failed; training.learning_rate ")
    assert [one.state.name for one in finished(study_path(record.folder))] == ["FAIL"]


def test_a_search_on_this_machine(cohort, home, run, tmp_path):
    ran = run("submit", "small_cpu", "--search", 2, "--data", cohort, "--cluster", "local", "--name", "h",
              "--out", tmp_path / "out", "--wait", *FAST_WORDS)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "trials  2, one after the other or at once" in ran.out
    record = find_record(None)
    assert record.kind == "search"
    values = [record.outcome(element).result["value"] for element in (0, 1)]
    assert [one.value for one in finished(study_path(record.folder))] == values
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    for element in (0, 1):
        tried = client.get_run(record.outcome(element).result["run_id"])
        assert tried.info.status == "FINISHED"
        assert tried.info.run_name.startswith(f"h-trial-{element} cnn ")
        assert tried.data.metrics["val/r2"] is not None
        assert not any(name.startswith("test/") for name in tried.data.metrics)
    shown = json.loads(run("status", record.id, "--json").out.splitlines()[-1])[0]
    assert shown["metrics"] == {"best val/r2": max(values)}
    text = run("status", record.id).out
    assert "2 of 2 trials" in text
    assert f"val/r2 {values[1]:.4g}; training.learning_rate" in text
    assert not list_models()


@pytest.mark.parametrize(
    "words, told",
    [
        (("--search", 2, "--stages"), "--search: goes alone"),
        (("--space", "s.yaml"), "--space: is for a search"),
    ],
)
def test_options_that_do_not_go_together(words, told, cohort, run):
    ran = run("submit", "small_cpu", "--data", cohort, "--cluster", "local", *words)
    assert ran.code == 2
    assert told in ran.err


def test_without_optuna_the_message_says_what_to_install(cohort, run, monkeypatch, tmp_path):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setitem(sys.modules, "optuna", None)
    ran = run("submit", "small_cpu", "--search", 2, "--data", cohort, "--cluster", "local")
    assert ran.code == 2
    assert "pip install 'optuna>=4,<5'" in ran.err
    assert not list((tmp_path / "work").iterdir())


def test_a_value_that_is_no_number_fails_the_trial(trial):
    record, (first, _), ends = trial
    ends(None)
    with pytest.raises(InputError, match="no number"):
        first.work(CONFIG)
    assert [one.state.name for one in finished(study_path(record.folder))] == ["FAIL"]


SPACE = {"training.learning_rate": Range(low=1e-4, high=1e-2, log=True)}


def told_study(path: Path) -> Study:
    """Two trials with a value, and one that runs."""
    study = Study(path)
    for element, value in enumerate((0.25, 0.5)):
        number, _ = study.ask(SPACE, element=element)
        study.tell(number, value)
    study.ask(SPACE, element=2)
    return study


def test_a_torn_line_of_the_journal_costs_nothing_that_was_written(tmp_path):
    path = tmp_path / "study"
    early = told_study(path)
    whole = path.read_bytes()
    for torn in (b'{"op_code":6,"trial', b"\0" * 50, b'{"op_code":6,"trial_id":2,"state":1,"valu'):
        path.write_bytes(whole + torn)
        study = Study(path)
        assert study.best()[0] == 1
        number, _ = study.ask(SPACE, element=3)
        assert number == 3
        study.tell(number, 0.75)
        assert early.best()[0] == 3  # whoever has it open reads on
        assert [trial.value for trial in finished(path)] == [0.25, 0.5, None, 0.75]  # and so does Optuna
        path.write_bytes(whole)
        early = Study(path)
    lines = whole.splitlines(keepends=True)
    path.write_bytes(
        b"".join(lines[:-1]) + b'{"op_code":5,"torn' + lines[-1]
    )  # an older version went on after it
    assert Study(path).best()[0] == 1


def test_a_full_disk_leaves_the_journal_whole(tmp_path):
    path = tmp_path / "study"
    study = told_study(path)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, limits[1]))
        with pytest.raises(ResourceError, match=r"study: cannot be written .*; free some disk space"):
            study.tell(2, 0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == size
    again = Study(path)
    again.tell(2, 0.9)
    assert again.best()[0] == 2


def test_a_damaged_journal_is_told_in_one_line(tmp_path):
    path = tmp_path / "study"
    told_study(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (
        [lines[0], b"\0" * 40 + b"\n", *lines[2:]],
        [lines[0], b'{"op_code":999}\n', *lines[1:]],
        [lines[0], b"[]\n", *lines[1:]],
    ):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(InputError, match=r"study: .*damaged.*; submit the search again"):
            Study(path).best()

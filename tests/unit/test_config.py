"""Presets and overrides become one validated configuration, or one line that says what is wrong."""

import hashlib
import json
import logging

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from snpdeconv.config import load_config, preset_names, preset_text, read_yaml, validate, with_overrides
from snpdeconv.errors import ConfigError

PRESETS = ["fast_prototype", "large_multi_gpu", "medium_gpu", "memory_constrained", "production", "small_cpu"]


def test_the_six_presets_are_there_and_valid():
    assert preset_names() == PRESETS
    for name in PRESETS:
        assert load_config(name).preset == name


@pytest.mark.parametrize(
    ("preset", "key", "value"),
    [
        ("small_cpu", "model.channels", (32, 64)),
        ("small_cpu", "training.epochs", 50),
        ("medium_gpu", "model.width", 128),
        ("medium_gpu", "training.batch_size", "auto"),
        ("large_multi_gpu", "model.num_heads", 16),
        ("large_multi_gpu", "training.accumulation", 2),
        ("large_multi_gpu", "resources.gpus_per_node", 4),
        ("memory_constrained", "memory.checkpoint_activations", True),
        ("fast_prototype", "training.epochs", 10),
        ("production", "model.dropout", 0.0),
    ],
)
def test_presets_hold_the_published_values(preset, key, value):
    section, name = key.split(".")
    assert getattr(getattr(load_config(preset), section), name) == value


@given(st.floats(1e-12, 1e3))
def test_any_float_survives_as_an_override(value):
    config = load_config("small_cpu", overrides=[f"training.learning_rate={value!r}"])
    assert config.training.learning_rate == value


@pytest.mark.parametrize(
    "text,value", [("1e-4", 1e-4), ("-1E3", -1000.0), (".5", 0.5), ("12", 12), ("1_0", 10)]
)
def test_yaml_numbers(text, value):
    assert read_yaml(text, where="here") == value


@pytest.mark.parametrize("text", ["1.2.3", "e5", "1e", "abc", "2e-4x"])
def test_yaml_text_that_is_no_number_stays_text(text):
    assert read_yaml(text, where="here") == text


def test_overrides_of_lists():
    assert load_config("small_cpu", overrides=["model.channels=8,16"]).model.channels == (8, 16)
    assert load_config("small_cpu", overrides=["model.channels=[8, 16]"]).model.channels == (8, 16)
    config = load_config("small_cpu", overrides=["interpretation.methods=attention"])
    assert config.interpretation.methods == ("attention",)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_pairs_are_looked_for_or_not_or_where_it_is_quick(text, value):
    assert load_config("small_cpu", overrides=[f"interpretation.pairs={text}"]).interpretation.pairs == value


def test_a_configuration_changed_in_one_section_only():
    config = load_config("small_cpu", overrides=["training.epochs=3"])
    changed = with_overrides(config, ["interpretation.coverage=0.9"], allowed=("interpretation",))
    assert changed.interpretation.coverage == 0.9
    assert changed.training == config.training
    assert with_overrides(config, [], allowed=("interpretation",)) == config
    with pytest.raises(ConfigError, match=r"'model.width=64' would change what the model was trained with"):
        with_overrides(config, ["model.width=64"], allowed=("interpretation",))
    with pytest.raises(ConfigError, match=r"did you mean 'interpretation\.coverage'"):
        with_overrides(config, ["interpretation.coverag=0.9"], allowed=("interpretation",))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epoch=5", "did you mean 'training.epochs'?"),
        ("trainin.epochs=5", "did you mean 'training.epochs'?"),
        ("training.width=5", "did you mean 'model.width'?"),
        ("epochs=5", "did you mean 'training.epochs'?"),
        ("training.epochs", "'training.epochs' has no value; write training.epochs=VALUE"),
        ("training.zzzz=5", "'training' has epochs"),
        ("zzz.qqq=5", "the sections are data, model"),
        ("training.epochs=0", "training.epochs: Input should be greater than or equal to 1 (given: 0)"),
        ("training.batch_size=many", "training.batch_size: should be 'auto' or a whole number"),
        ("training.learning_rate=.inf", "not a finite number"),
        ("model.architecture=cnnn", "'cnn', 'cnn_transformer' or 'gnn' (given: 'cnnn')"),
        ("model.width=100", "width 100 is not a multiple of num_heads 8"),
        ("model.channels=[1", "not readable as YAML"),
        ("interpretation.pairs=some", "should be auto, true or false (given: 'some')"),
        ("interpretation.coverage=1", "interpretation.coverage: Input should be less than 1"),
        ("interpretation.num_permutations=-1", "interpretation.num_permutations: Input should be greater"),
        ("model.channels=8", "should be two numbers, such as 32,64 (given: 8)"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_right_one(override, says):
    with pytest.raises(ConfigError) as error:
        load_config("small_cpu", overrides=[override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'small_cpu'"):
        load_config("smal_cpu")


def test_a_key_that_stands_twice_is_an_error():
    with pytest.raises(ConfigError, match="line 1: key 'a' stands twice"):
        read_yaml("a: 1\na: 2\n", where="here")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(preset_text("small_cpu").replace("epochs: 50", "epochs: 7"))
    assert load_config(str(path)).training.epochs == 7
    path.write_text(preset_text("small_cpu").replace("epochs: 50", "epocs: 7"))
    with pytest.raises(ConfigError, match=r"mine: training\.epo"):
        load_config(str(path))
    path.write_text("just text")
    with pytest.raises(ConfigError, match="holds no settings"):
        load_config(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(tmp_path / "none.yaml"))


def test_settings_are_frozen_and_round_trip():
    config = load_config("small_cpu")
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3
    assert config.flat()["training.epochs"] == "50"
    assert read_yaml(config.to_yaml(), where="here") == config.model_dump(mode="json", exclude={"preset"})


def test_a_ranking_by_a_method_that_is_left_out():
    with pytest.raises(ConfigError, match="rank_by attention is not among the methods"):
        load_config(
            "small_cpu",
            overrides=["interpretation.methods=integrated_gradients", "interpretation.rank_by=attention"],
        )


def test_a_renamed_setting_is_taken_by_its_old_name(tmp_path, caplog):
    file = tmp_path / "mine.yaml"
    file.write_text("base: small_cpu\ninterpretation: {decoys: 3}\n")
    with caplog.at_level(logging.WARNING):
        assert load_config(str(file)).interpretation.num_permutations == 3
        changed = load_config("small_cpu", overrides=["interpretation.decoys=4"])
    assert changed.interpretation.num_permutations == 4
    assert caplog.text.count("interpretation.decoys") == 2
    assert caplog.text.count("is called interpretation.num_permutations now") == 2


def test_settings_that_an_earlier_version_kept_are_named_as_it_named_them(caplog):
    kept = yaml.safe_load(load_config("small_cpu").to_yaml())
    for later in ("max_effects", "min_purity"):
        del kept["interpretation"][later]
    del kept["data"]["kinship"]
    kept["interpretation"]["decoys"] = kept["interpretation"].pop("num_permutations")
    named = {key: kept[key] for key in kept.keys() - {"description", "resources", "tracking"}}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    with caplog.at_level(logging.WARNING):
        config = validate({**kept, "preset": "small_cpu"}, where="settings.yaml")
    assert config.digest() == load_config("small_cpu").digest() == digest
    assert not caplog.text
    for changed in (
        "interpretation.num_permutations=3",
        "interpretation.max_effects=5",
        "interpretation.min_purity=0.6",
        "data.kinship=false",
    ):
        assert load_config("small_cpu", overrides=[changed]).digest() != digest

"""The configuration of a run, and YAML as this project reads it.

Presets plus overrides become one validated, frozen `Config`: mistakes end here, before any data is read or
any job is queued. Knows no torch and no file formats but YAML.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.files import read_whole

logger = logging.getLogger(__name__)

_MOST_BYTES, _MOST_VALUES, _MOST_BRACKETS, _MOST_DIGITS = 2**20, 20_000, 1_000, 18
Architecture = Literal["cnn", "cnn_transformer", "gnn"]
TraitType = Literal["auto", "binary", "multiclass", "quantitative"]
Multiallelic = Literal["split", "skip"]
ChromosomeSet = Literal["human", "cow", "dog", "horse", "mouse", "rice", "sheep"]
NetworkMethod = Literal["attention", "integrated_gradients"]
Method = Literal["marginal", "single_effects", NetworkMethod, "ensemble"]
Stage = Literal["validate", "train", "rank", "register"]
"""With ``validate`` a run ends after its training, without a look at the test samples: one to choose from."""


RENAMED = {"interpretation.decoys": "interpretation.num_permutations"}
"""Settings by their old names, which stand in what earlier versions wrote, and are taken in this one."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number and refuses a duplicate key."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\.\d+([eE][-+]?\d+)?|\d[\d_]*\.[\d_]*|\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise ConfigError(
            f"key '{repeated[0]}' stands twice",
            where=f"line {node.start_mark.line + 1}",
            hint="keep one of them",
        )
    return loader.construct_mapping(node, deep=True)


class _TextLoader(_Loader):
    """What is no mapping, list or null is text: an account 0123 or a time 12:30 is no number."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}

_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(text: str, *, where: str | Path, as_text: bool = False) -> Any:
    """Parses YAML as this project reads it: ``1e-4`` is a number, a key may stand once.

    With `as_text`, numbers, dates and truth values stay as they are written. What is larger or deeper than
    settings are is refused, aliases counted as what they stand for.
    """
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError(f"longer than {_MOST_BYTES} characters")
        if text.count("[") + text.count("{") > _MOST_BRACKETS:
            raise ValueError(f"more than {_MOST_BRACKETS} brackets")  # PyYAML's time grows with their square
        _require_small(yaml.compose(text, Loader=_Loader))
        return yaml.load(text, Loader=_TextLoader if as_text else _Loader)
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError("is nested too deeply to be settings", where=where) from error
    # Besides YAMLError: what Python raises for a number of 5,000 digits, a 30th of February or `!!int x`.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"not readable as YAML ({' '.join(str(error).split())})", where=where) from error


def read_yaml_file(path: Path, *, as_text: bool = False) -> Any:
    """The content of a YAML file; `as_text` as `read_yaml` has it."""
    hint = "give the path of a YAML file"
    try:
        text = read_whole(path, limit=_MOST_BYTES, hint=hint).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=path, hint="check the path") from error
    except InputError as error:
        raise ConfigError(error.problem, where=path, hint=hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=path, hint="save it as UTF-8") from error
    return read_yaml(text, where=path, as_text=as_text)


def _require_small(root: yaml.Node | None) -> None:
    """Counts values before any is made, aliases as what they stand for: a few lines can mean billions."""
    waiting, seen = [root] if root is not None else [], 0
    while waiting:
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values")
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS:
            raise ValueError(f"a whole number of {len(node.value)} digits")
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]


class Section(BaseModel):
    """A group of settings; unknown keys are errors, and the presets hold all values.

    A setting that came later has the value that it stands for in files from before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def _auto_or_a_truth(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("should be auto, true or false")
    return value


class DataConfig(Section):
    """What enters: filters, splits, covariates and blocks."""

    trait_type: TraitType
    maf_min: float = Field(ge=0.0, lt=0.5)
    variant_missing_max: float = Field(ge=0.0, le=1.0)
    sample_missing_max: float = Field(ge=0.0, le=1.0)
    min_class_size: int = Field(ge=3)
    validation_fraction: float = Field(gt=0.0, lt=0.5)
    test_fraction: float = Field(gt=0.0, lt=0.5)
    num_components: int = Field(ge=0, le=100)
    multiallelic: Multiallelic
    allow_leakage: bool = False
    missing_codes: Literal["auto"] | tuple[float, ...] = "auto"
    min_typed_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    check_frequencies: bool = True
    chromosome_set: ChromosomeSet | Annotated[int, Field(ge=1, le=95)] = "human"
    kinship: bool | Literal["auto"] = "auto"

    @field_validator("kinship", mode="before")
    @classmethod
    def _auto_or_a_truth(cls, value: Any) -> Any:
        return _auto_or_a_truth(value)

    @field_validator("missing_codes", mode="before")
    @classmethod
    def _one_code_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value


class ModelConfig(Section):
    """The network."""

    architecture: Architecture
    encoding_dim: Literal[1, 2, 4, 8]
    linear: Literal["fitted", "ridge", "trained"]
    channels: tuple[int, int]
    width: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    patch: int = Field(ge=4, multiple_of=4)
    dropout: float = Field(ge=0.0, lt=1.0)
    ridge_max_samples: int = Field(default=10_000, ge=100)

    @field_validator("channels", mode="before")
    @classmethod
    def _two_stages(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("should be two numbers, such as 32,64")
        return value

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class TrainingConfig(Section):
    """The optimisation."""

    epochs: int = Field(ge=1)
    batch_size: int | Literal["auto"]
    accumulation: int = Field(ge=1)
    learning_rate: float = Field(gt=0.0)
    weight_decay: float = Field(ge=0.0)
    schedule: Literal["cosine", "plateau", "constant"]
    warmup_fraction: float = Field(ge=0.0, lt=1.0)
    patience: int = Field(ge=1)
    gradient_clip: float = Field(gt=0.0)
    loss: Literal["auto", "focal", "cross_entropy", "mse"]
    class_weights: Literal["balanced", "alpha"]
    focal_alpha: float = Field(gt=0.0, lt=1.0)
    focal_gamma: float = Field(ge=0.0)
    checkpoint_every_steps: int = Field(ge=1)
    seed: int = Field(ge=0, lt=2**32)

    @field_validator("batch_size", mode="before")
    @classmethod
    def _auto_or_positive(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or value < 1):
            raise ValueError("should be 'auto' or a whole number of at least 1")
        return value


class PrecisionConfig(Section):
    """Number formats and compilation."""

    amp: Literal["auto", "bf16", "fp16", "fp32"]
    compile: bool
    deterministic: bool = False


class MemoryConfig(Section):
    """How memory is spent."""

    checkpoint_activations: bool
    max_batch_size: int = Field(ge=1)
    safety: float = Field(gt=0.0, le=1.0)


class InterpretationConfig(Section):
    """How SNPs are ranked."""

    methods: tuple[Literal["single_effects", NetworkMethod], ...]
    rank_by: Method
    coverage: float = Field(ge=0.5, lt=1.0)
    pairs: bool | Literal["auto"]
    max_pair_tests: float = Field(default=3e12, gt=0.0)
    interactions: tuple[str, ...] = ()
    normal_scores: bool | Literal["auto"]
    num_permutations: int = Field(ge=0, le=100, validation_alias=AliasChoices("num_permutations", "decoys"))
    max_effects: int = Field(default=20, ge=1)
    min_purity: float = Field(default=0.5, ge=0.0, le=1.0)
    gradient_steps: int = Field(ge=2)
    max_samples: int = Field(ge=1)

    @field_validator("methods", "interactions", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("pairs", "normal_scores", mode="before")
    @classmethod
    def _auto_or_a_truth(cls, value: Any) -> Any:
        return _auto_or_a_truth(value)

    @model_validator(mode="after")
    def _rank_by_is_computed(self) -> InterpretationConfig:
        if self.rank_by not in (*self.methods, "marginal", "ensemble"):
            raise ValueError(f"rank_by {self.rank_by} is not among the methods {', '.join(self.methods)}")
        return self


class TrackingConfig(Section):
    """What is logged where; the server's address comes from MLFLOW_TRACKING_URI."""

    experiment: str
    log_every_steps: int = Field(ge=1)
    flush_timeout_s: float = Field(ge=0.0)
    log_predictions: bool = False
    log_places: bool = False


class ResourcesConfig(Section):
    """What a job needs."""

    device: Literal["auto", "cpu", "cuda"]
    nodes: int = Field(ge=1)
    gpus_per_node: int = Field(ge=0)
    cpus_per_task: int = Field(ge=1)
    mem_gib: int = Field(ge=1)
    timeout_min: int = Field(ge=1)
    signal_delay_s: int = Field(ge=1)


class Config(Section):
    """One run's settings, complete."""

    preset: str
    description: str
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    precision: PrecisionConfig
    memory: MemoryConfig
    interpretation: InterpretationConfig
    tracking: TrackingConfig
    resources: ResourcesConfig

    def to_yaml(self) -> str:
        """The settings as a file that `load_config` reads."""
        settings = self.model_dump(mode="json", exclude={"preset"})
        return yaml.safe_dump(settings, sort_keys=False)

    def digest(self) -> str:
        """Names what a model trained with these settings depends on: all but where it runs and is tracked.

        By the names and with the settings of earlier versions, where it says the same as one of theirs.
        """
        settings = self.model_dump(mode="json", exclude={"preset", "description", "resources", "tracking"})
        ranking = settings["interpretation"]
        ranking["decoys"] = ranking.pop("num_permutations")
        if settings["data"]["kinship"] == DataConfig.model_fields["kinship"].default:
            del settings["data"]["kinship"]
        for name in ("max_effects", "min_purity"):
            if ranking[name] == InterpretationConfig.model_fields[name].default:
                del ranking[name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def flat(self) -> dict[str, str]:
        """Settings as ``section.key`` -> text, the way MLflow shows parameters."""
        settings = {"preset": self.preset}
        for section, values in self.model_dump(mode="json").items():
            if isinstance(values, dict):
                settings |= {f"{section}.{key}": str(value) for key, value in values.items()}
        return settings


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("snpdeconv.presets")
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def preset_text(name: str) -> str:
    """The YAML of a preset, as it stands in its file."""
    if name not in preset_names():
        raise ConfigError(
            f"there is no preset '{name}'", where="--preset", hint=nearest(name, preset_names())
        )
    return (resources.files("snpdeconv.presets") / f"{name}.yaml").read_text()


def load_config(preset: str, *, overrides: Iterable[str] = ()) -> Config:
    """A preset with overrides, validated.

    Args:
        preset: Name of a preset, or path of a YAML file of the same form; with ``base: NAME`` of a preset it
            may leave out what that says.
        overrides: Assignments ``section.key=value``; the value is read as YAML.

    Raises:
        ConfigError: Unknown preset, section or key (with the nearest right one), or a value out of range.
    """
    path = Path(preset)
    if path.suffix in (".yaml", ".yml"):
        content, name = read_yaml_file(path), path.stem
    else:
        content, name = read_yaml(preset_text(preset), where=preset), preset
    settings = _on_base(content, where=name)
    settings.setdefault("description", "")
    settings["preset"] = name
    return validate(settings, where=name, changed=[_override(settings, one) for one in overrides])


def _on_base(settings: Any, *, where: str) -> dict[str, Any]:
    """A preset's settings, those that its file leaves out from the preset that it names as its base."""
    if not isinstance(settings, dict):
        raise ConfigError(
            "holds no settings", where=where, hint="see `snpdeconv presets small_cpu` for the form"
        )
    for old, new in RENAMED.items():
        section, _, name = old.partition(".")
        if isinstance(held := settings.get(section), dict) and name in held:
            logger.warning("%s: %s is called %s now", where, old, new)
            held.setdefault(new.partition(".")[2], held.pop(name))
    base = settings.pop("base", None)
    if base is None:
        return settings
    if base not in preset_names():
        raise ConfigError(
            f"there is no preset '{base}'", where=f"{where}: base", hint=nearest(str(base), preset_names())
        )
    whole: dict[str, Any] = read_yaml(preset_text(base), where=base)
    for key, value in settings.items():
        both = isinstance(value, dict) and isinstance(whole.get(key), dict)
        whole[key] = whole[key] | value if both else value
    return whole


def with_overrides(config: Config, overrides: Iterable[str], *, allowed: Sequence[str]) -> Config:
    """Changes single settings of a configuration that is there."""
    settings = config.model_dump(mode="json")
    changed = []
    for assignment in overrides:
        key = _override(settings, assignment)
        changed.append(key)
        if not any(key == one or key.startswith(f"{one}.") for one in allowed):
            raise ConfigError(
                f"'{assignment}' would change what the model was trained with",
                where="--set",
                hint=f"beside a model only settings of {' and '.join(map(repr, allowed))} can be changed",
            )
    return validate(settings, where=config.preset, changed=changed)


def validate(settings: Mapping[str, Any], *, where: str, changed: Sequence[str] = ()) -> Config:
    """Settings as nested mappings -> `Config`; a mistake in a key that ``--set`` changed is said of that."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                "there is no such setting", where=f"{where}: {key}", hint=_nearest_key(key)
            ) from error
        problem = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], Mapping | BaseModel) else f" (given: {first['input']!r})"
        # What does not hold together is known by its section alone.
        blamed = [one for one in changed if one == key or one.startswith(f"{key}.")]
        missing = first["type"] == "missing"
        raise ConfigError(
            f"{problem}{given}",
            where=f"--set {blamed[-1]}" if blamed and not missing else f"{where}: {key}",
            hint="write it, or name a preset that has it: base: small_cpu" if missing else None,
        ) from error


def _sections() -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _all_keys() -> list[str]:
    return [f"{section}.{key}" for section, kind in _sections().items() for key in kind.model_fields]


def _nearest_key(key: str) -> str:
    """What the user may have meant by a key, in a few words."""
    section, _, name = key.rpartition(".")
    if section in _sections() and get_close_matches(name, _sections()[section].model_fields):
        return f"did you mean '{section}.{get_close_matches(name, _sections()[section].model_fields)[0]}'?"
    same_name = [known for known in _all_keys() if known.endswith(f".{name}")]
    if same_name:
        return f"did you mean '{same_name[0]}'?"
    if section in _sections():
        return f"'{section}' has {', '.join(_sections()[section].model_fields)}"
    close = get_close_matches(key, _all_keys())
    return f"did you mean '{close[0]}'?" if close else f"the sections are {', '.join(_sections())}"


def _override(settings: dict[str, Any], assignment: str) -> str:
    """Makes an assignment; gives the key."""
    key, equals, value = assignment.partition("=")
    key = key.strip()
    if key in RENAMED:
        logger.warning("--set %s: the setting is called %s now", key, RENAMED[key])
        key = RENAMED[key]
    if not equals and key in _all_keys():
        raise ConfigError(f"'{assignment}' has no value", where="--set", hint=f"write {key}=VALUE")
    if not equals or key.count(".") != 1:
        raise ConfigError(f"'{assignment}' is not section.key=value", where="--set", hint=_nearest_key(key))
    if key not in _all_keys():
        raise ConfigError(f"there is no setting '{key}'", where="--set", hint=_nearest_key(key))
    section, name = key.split(".")
    parsed = read_yaml(value, where=f"--set {key}")
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise ConfigError(f"'{value}' is not a finite number", where=f"--set {key}")
    if isinstance(parsed, str) and "," in parsed:
        parsed = [read_yaml(part, where=f"--set {key}") for part in parsed.split(",")]
    if not isinstance(settings.setdefault(section, {}), dict):
        raise ConfigError(f"section '{section}' holds no settings", where="the preset", hint="fill it in")
    settings[section][name] = parsed
    return key

"""A trained model as a folder: weights in safetensors, everything else as text, nothing that runs code.

model.safetensors, config.json and variants.tsv hold all that prediction on another cohort needs;
held_out.json holds hashes of the samples that it was tested on, to compare a later model on them.
Shapes: V variants, S slots, C covariates and components.
"""

from __future__ import annotations

import io
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from typing_extensions import TypedDict

from snpdeconv.config import Architecture, Config, validate
from snpdeconv.errors import InputError, UserError
from snpdeconv.files import read_record, read_whole, replacing, sync_to_disk, write_json
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.pca import Components
from snpdeconv.genetics.phenotypes import CovariateEncoder
from snpdeconv.genetics.samples import HashedSamples, Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines.dataset import Dataset, Scale
from snpdeconv.pipelines.run_folder import Inputs, read_held_out
from snpdeconv.tracking.artifacts import MOST_BYTES
from snpdeconv.training.metrics import Calibration
from snpdeconv.version import __version__

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
_HINT = "train and register it again"
_WEIGHTS, _CONFIG, _VARIANTS, _HELD_OUT = "model.safetensors", "config.json", "variants.tsv", "held_out.json"
_HELD_OUT_IN_CLEAR = "held_out.tsv"
"""In bundles from before there were hashes."""


T = TypeVar("T")

_Count = Annotated[int, Field(ge=0, le=10**9)]
_Few = Annotated[int, Field(ge=1, le=2**16)]


class _Format(TypedDict):
    format: int


class _Model(TypedDict):
    """What a network is built from: sizes, within what a machine can hold."""

    n_snps: Annotated[int, Field(ge=1, le=10**8)]
    architecture: Architecture
    encoding_dim: Literal[1, 2, 4, 8]
    num_outputs: _Few
    num_covariates: _Count
    width: _Few
    num_layers: Annotated[int, Field(ge=0, le=1000)]
    num_heads: _Few
    channels: tuple[_Few, _Few]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    patch: Annotated[int, Field(ge=4, le=2**16)]
    window: NotRequired[Annotated[int, Field(ge=1)]]
    num_neighbors: _Count
    checkpoint_activations: bool
    linear: Literal["trained", "fitted"]
    norm: NotRequired[Literal["batch", "sample"]]
    sparse_sizes: NotRequired[tuple[_Count, _Count]]


class _About(TypedDict):
    """What stands in config.json."""

    trait: str
    kind: TraitKind
    classes: list[str]
    scale: Scale
    calibration: Calibration
    patch: _Few
    model: _Model
    covariates: CovariateEncoder | None
    inputs: NotRequired[Inputs]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A trained network (on the CPU) with what turns a cohort into its input and its output into predictions.

    Attributes:
        frequency: (V,) frequency of the counted allele in the training samples.
        block: (V,) name of the LD block of each variant.
        scale: Units of a quantitative trait.
        calibration: From logits to calibrated ones.
        covariate_encoder: How a covariate table is read, where the model takes one.
        components: Principal components, where the model takes them.
        inputs: The files it was trained on; None of models that leave them at home.
        held_out: The samples it was tested on.
    """

    model: InterpretableSNPModel
    variants: Variants
    frequency: NDArray[np.float64]
    block: NDArray[np.object_]
    layout: Layout
    trait: str
    kind: TraitKind
    classes: tuple[str, ...]
    scale: Scale
    calibration: Calibration
    covariate_encoder: CovariateEncoder | None
    components: Components | None
    inputs: Inputs | None
    held_out: Samples | HashedSamples
    config: Config


def make_bundle(
    model: InterpretableSNPModel, dataset: Dataset, *, calibration: Calibration, config: Config
) -> Bundle:
    """Puts together what a trained model needs to travel."""
    components = dataset.components
    if components is not None:
        # A cohort comes to the model in the order of its variants, not of the cohort it was trained on.
        columns = np.searchsorted(dataset.columns, components.columns)
        components = Components(**{**_fields(components), "columns": columns})
    return Bundle(
        model=model,
        variants=dataset.variants,
        frequency=dataset.frequency,
        block=dataset.blocks.name[dataset.blocks.of_variant],
        layout=dataset.layout,
        trait=dataset.trait.name,
        kind=dataset.trait.kind,
        classes=dataset.trait.classes,
        scale=dataset.scale,
        calibration=calibration,
        covariate_encoder=dataset.covariate_encoder,
        components=components,
        inputs=None,
        held_out=HashedSamples.from_samples(
            dataset.cohort.samples.take(dataset.trait.rows[dataset.split.test])
        ),
        config=config,
    )


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Writes a bundle as a folder that appears whole or not at all; an earlier one is replaced."""
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with replacing(temporary / _WEIGHTS) as weights:
            save_file(_tensors(bundle), weights)
        write_json(temporary / _CONFIG, _description(bundle))
        frame = bundle.variants.to_frame()
        frame["frequency"], frame["block"] = bundle.frequency, bundle.block
        frame.to_csv(temporary / _VARIANTS, sep="\t", index=False)
        assert isinstance(bundle.held_out, HashedSamples)
        write_json(temporary / _HELD_OUT, asdict(bundle.held_out))
        for path in (*temporary.iterdir(), temporary):
            sync_to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def held_out_path(folder: Path) -> Path:
    """The file of a bundle that says which samples the model was tested on."""
    in_clear = folder / _HELD_OUT_IN_CLEAR
    return in_clear if in_clear.exists() else folder / _HELD_OUT


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle; no code travels in it, the architecture is chosen from this package's own."""
    try:
        return _read_bundle(folder)
    except UserError:
        raise
    except Exception as error:  # whatever libraries say of bytes that are none of ours
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise InputError(f"is no model ({reason[:300]})", where=folder, hint=_HINT) from error


def _read_bundle(folder: Path) -> Bundle:
    path = folder / _CONFIG
    if (version := read_record(path, _Format, hint=_HINT)["format"]) != FORMAT:
        raise InputError(
            f"has format {version}, and this version reads {FORMAT}",
            where=path,
            hint="use the version of snpdeconv that wrote it, or train again",
        )
    about = read_record(path, _About, hint=_HINT)
    tensors = _read_tensors(folder / _WEIGHTS, about["model"])
    state = _below("model.", tensors)
    model = _empty_model(about["model"], state)
    model.load_state_dict(state)
    frame = _read_variants(folder / _VARIANTS, num_slots=model.n_snps)
    encoder = about["covariates"]
    components = _components(tensors)
    _check_sizes(about, tensors, model, num_variants=len(frame))
    num_columns = len(encoder.features if encoder else ()) + (
        0 if components is None else components.loadings.shape[1]
    )
    _require(num_columns == model.num_covariates, f"{num_columns} covariates for {model.num_covariates}")
    held_out = read_held_out(held_out_path(folder))
    if isinstance(held_out, HashedSamples):
        bytes.fromhex(held_out.salt)
    settings = {key: value for key, value in about["settings"].items() if key != "preset"}
    return Bundle(
        model=model.eval(),
        variants=Variants.from_frame(frame),
        frequency=frame["frequency"].to_numpy(dtype=np.float64),
        block=frame["block"].astype(object).to_numpy(),
        layout=Layout(columns=tensors["layout.columns"].numpy(), patch=about["patch"]),
        trait=about["trait"],
        kind=about["kind"],
        classes=tuple(about["classes"]),
        scale=about["scale"],
        calibration=about["calibration"],
        covariate_encoder=encoder,
        components=components,
        inputs=about.get("inputs"),
        held_out=held_out,
        config=validate({"preset": about["settings"]["preset"], **settings}, where=str(path)),
    )


def _below(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """The values whose names begin so, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _read_tensors(path: Path, arguments: _Model) -> dict[str, torch.Tensor]:
    """The tensors, once their names and shapes are known to be those of the model that is told of.

    A file names sizes that it does not hold: what has other shapes is refused before anything of that size is
    made.
    """
    _require(
        path.is_file() and path.stat().st_size <= MOST_BYTES, f"{path.name} is no file of a model's size"
    )
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        graph = {
            name: torch.empty((arguments["n_snps"], *shape[1:]), dtype=dtype, device="meta")
            for name, dtype in (("neighbors", torch.int64), ("neighbor_weights", torch.float32))
            if (shape := shapes.get(f"model.body.{name}"))
        }
        slots = shapes.get("model.encoder.allele_frequency")
        _require(slots == (arguments["n_snps"],), f"weights of {slots} slots for {arguments['n_snps']}")
        with torch.device("meta"):
            expected = _build(arguments, graph).state_dict()
        ours = _below("model.", shapes)
        for name in sorted(ours.keys() ^ expected.keys()):
            raise ValueError(f"tensor {name[:100]} is {'missing' if name in expected else 'unknown'}")
        for name, shape in ours.items():
            wanted = tuple(expected[name].shape)
            _require(shape == wanted, f"tensor {name} has shape {shape}, not {wanted}")
        tensors = {name: file.get_tensor(name) for name in shapes}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            _require(bool(torch.isfinite(tensor).all()), f"tensor {name[:100]} is not finite")
    return tensors


def _read_variants(path: Path, *, num_slots: int) -> pd.DataFrame:
    """The table of variants; no larger than a model of so many slots can have."""
    import pandas as pd

    text = read_whole(path, limit=10_000 + 2000 * num_slots, hint=_HINT)
    # Names and alleles may look like numbers.
    dtypes: defaultdict[str, Any] = defaultdict(lambda: str, pos=np.int64, frequency=np.float64)
    frame = pd.read_csv(io.BytesIO(text), sep="\t", dtype=dtypes, keep_default_na=False)
    _require(bool(frame["frequency"].between(0, 1).all()), "a frequency is not between 0 and 1")
    _require(bool((frame["pos"] >= 0).all()), "a position is negative")
    return frame


def _check_sizes(
    about: _About, tensors: dict[str, torch.Tensor], model: InterpretableSNPModel, *, num_variants: int
) -> None:
    """Holds numbers of one file against those of the others."""
    columns = tensors["layout.columns"]
    _require(columns.shape == (model.n_snps,), f"a layout of {tuple(columns.shape)} for {model.n_snps} slots")
    _require(columns.dtype == torch.int64 and about["patch"] == model.patch, "the layout is not the model's")
    real = columns[columns >= 0].sort().values
    _require(
        torch.equal(real, torch.arange(num_variants)), f"a layout of other than the {num_variants} variants"
    )
    num_classes = {"quantitative": 0, "binary": 2, "multiclass": model.num_outputs}[about["kind"]]
    _require(len(about["classes"]) in (num_classes, 0), f"{len(about['classes'])} classes")
    _require(about["kind"] == "multiclass" or model.num_outputs == 1, f"{model.num_outputs} outputs")
    features = about["covariates"].features if about["covariates"] else ()
    for sd in (about["calibration"].scale, *(feature.sd for feature in features)):
        _require(sd > 0, f"a scale of {sd:g}")
    bias = about["calibration"].bias
    _require(about["calibration"].kind == about["kind"], "the calibration is another trait's")
    _require(len(bias) in (1, model.num_outputs), f"a calibration of {len(bias)} outputs")
    for name, most in (
        ("sparse.slot", model.n_snps),
        ("sparse.pair", model.n_snps),
        ("body.neighbors", None),
    ):
        index = tensors.get(f"model.{name}")
        if index is not None and index.numel():
            most = len(index) if most is None else most
            _require(int(index.min()) >= 0 and int(index.max()) < most, f"tensor {name} points outside")
    if parts := _below("components.", tensors):
        (rows, number), used = parts["loadings"].shape, parts["columns"]
        for name in ("columns", "frequency"):
            _require(parts[name].shape == (rows,), f"components.{name} has another length")
        for name in ("score_sd", "variance_share"):
            _require(parts[name].shape == (number,), f"components.{name} has another length")
        _require(bool(((used >= 0) & (used < num_variants)).all()), "components.columns points outside")
        _require(bool((parts["score_sd"] > 0).all()), "components.score_sd is not positive")


def _empty_model(arguments: _Model, state: dict[str, torch.Tensor]) -> InterpretableSNPModel:
    """A model of the right shapes; a graph's neighbours are needed to build it, the rest is loaded."""
    graph = {
        name: state[f"body.{name}"][: arguments["n_snps"]]
        for name in ("neighbors", "neighbor_weights")
        if f"body.{name}" in state
    }
    return _build(arguments, graph)


def _build(arguments: _Model, graph: dict[str, torch.Tensor]) -> InterpretableSNPModel:
    # Before there were windows, every token attended to every other; before `norm`, it was over the batch.
    every_token = -(-arguments["n_snps"] // arguments["patch"])
    everything: dict[str, Any] = {"window": every_token, "norm": "batch", **arguments, **graph}
    return InterpretableSNPModel(**everything)


def _tensors(bundle: Bundle) -> dict[str, torch.Tensor]:
    tensors = {f"model.{key}": value.contiguous() for key, value in bundle.model.state_dict().items()}
    tensors["layout.columns"] = torch.from_numpy(bundle.layout.columns)
    if bundle.components is not None:
        for name, values in _fields(bundle.components).items():
            tensors[f"components.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
    return tensors


def _components(tensors: dict[str, torch.Tensor]) -> Components | None:
    fields = {name: tensor.numpy() for name, tensor in _below("components.", tensors).items()}
    return Components(**fields) if fields else None


def _fields(components: Components) -> dict[str, NDArray[Any]]:
    return {name: getattr(components, name) for name in Components.__dataclass_fields__}


def _description(bundle: Bundle) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "snpdeconv": __version__,
        "torch": torch.__version__.partition("+")[0],
        "trait": bundle.trait,
        "kind": bundle.kind,
        "classes": list(bundle.classes),
        "scale": asdict(bundle.scale),
        "calibration": asdict(bundle.calibration),
        "patch": bundle.layout.patch,
        "model": bundle.model.config,
        "covariates": bundle.covariate_encoder and asdict(bundle.covariate_encoder),
        "settings": bundle.config.model_dump(mode="json"),
    }

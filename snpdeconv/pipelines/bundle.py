"""A trained model as a folder: weights in safetensors, everything else as text, nothing that runs code.

model.safetensors, config.json and variants.tsv hold all that prediction on another cohort needs;
held_out.json holds hashes of the people that it was tested on, so that a later model can be compared on them.
Shapes: V variants, S slots, C covariates and components.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from snpdeconv.config import Config, validate
from snpdeconv.errors import InputError
from snpdeconv.files import replacing, sync_to_disk, write_json
from snpdeconv.genetics.covariates import CovariateEncoder
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.phenotypes import TraitKind
from snpdeconv.genetics.samples import HashedSamples, Samples
from snpdeconv.genetics.structure import Components
from snpdeconv.genetics.variants import Variants
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines.dataset import Dataset, Scale
from snpdeconv.pipelines.inputs import Inputs, read_held_out
from snpdeconv.training.calibration import Calibration
from snpdeconv.version import __version__

FORMAT = 1
_WEIGHTS, _CONFIG, _VARIANTS, _HELD_OUT = "model.safetensors", "config.json", "variants.tsv", "held_out.json"
_HELD_OUT_IN_CLEAR = "held_out.tsv"
"""In bundles from before there were hashes."""


@dataclass(frozen=True)
class Bundle:
    """A trained network with what turns a cohort into its input and its output into predictions.

    Attributes:
        model: The network, in evaluation mode, on the CPU.
        variants: The V variants it looks at.
        frequency: (V,) frequency of the counted allele in the training people.
        block: (V,) name of the LD block of each variant.
        layout: Slots of the variants.
        trait: Name of the trait.
        kind: Kind of the trait.
        classes: Names of the classes.
        scale: Units of a quantitative trait.
        calibration: From logits to calibrated ones.
        covariate_encoder: How a covariate table is read, where the model takes one.
        components: Principal components, where the model takes them.
        inputs: The files it was trained on.
        held_out: The people it was tested on.
        config: The settings it was trained with.
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
    inputs: Inputs
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
        # The table it may have come from is gone by the time that another cohort is asked for.
        inputs=replace(dataset.inputs, held_out=None),
        held_out=HashedSamples.of(dataset.cohort.samples.take(dataset.trait.rows[dataset.split.test])),
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
    """The file of a bundle that says whom the model was tested on."""
    in_clear = folder / _HELD_OUT_IN_CLEAR
    return in_clear if in_clear.exists() else folder / _HELD_OUT


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle; no code travels in it, the architecture is chosen from this package's own.

    Raises:
        InputError: The folder is no bundle, or of a format that this version does not know.
    """
    try:
        return _read_bundle(folder)
    # RuntimeError: weights of other shapes than the model's.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise InputError(
            f"is no model ({reason})", where=folder, mend="train and register it again"
        ) from error


def _read_bundle(folder: Path) -> Bundle:
    import pandas as pd

    about: dict[str, Any] = json.loads((folder / _CONFIG).read_text())
    tensors = load_file(folder / _WEIGHTS)
    # Names and alleles may look like numbers.
    dtypes: defaultdict[str, Any] = defaultdict(lambda: str, pos=np.int64, frequency=np.float64)
    frame = pd.read_csv(folder / _VARIANTS, sep="\t", dtype=dtypes, keep_default_na=False)
    if about["format"] != FORMAT:
        raise InputError(
            f"has format {about['format']}, and this version reads {FORMAT}",
            where=folder / _CONFIG,
            mend="use the version of snpdeconv that wrote it, or train again",
        )
    state = {
        key.removeprefix("model."): tensor for key, tensor in tensors.items() if key.startswith("model.")
    }
    model = _empty_model(about["model"], state)
    model.load_state_dict(state)
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
        scale=Scale(**about["scale"]),
        calibration=Calibration.from_dict(about["calibration"]),
        covariate_encoder=about["covariates"] and CovariateEncoder.from_dict(about["covariates"]),
        components=_components(tensors),
        inputs=Inputs(**about["inputs"]),
        held_out=read_held_out(held_out_path(folder)),
        config=validate({"preset": about["settings"]["preset"], **settings}, where=str(folder / _CONFIG)),
    )


def _empty_model(arguments: dict[str, Any], state: dict[str, torch.Tensor]) -> InterpretableSNPModel:
    """A model of the right shapes; a graph's neighbours are needed to build it, the rest is loaded."""
    graph = {
        name: state[f"body.{name}"][: arguments["n_snps"]]
        for name in ("neighbors", "neighbor_weights")
        if f"body.{name}" in state
    }
    # Before there were windows, every token attended to every other; before `norm`, it was over the batch.
    every_token = -(-arguments["n_snps"] // arguments["patch"])
    before = {"window": every_token, "norm": "batch"}
    return InterpretableSNPModel(**{**before, **arguments, **graph})


def _tensors(bundle: Bundle) -> dict[str, torch.Tensor]:
    tensors = {f"model.{key}": value.contiguous() for key, value in bundle.model.state_dict().items()}
    tensors["layout.columns"] = torch.from_numpy(bundle.layout.columns)
    if bundle.components is not None:
        for name, values in _fields(bundle.components).items():
            tensors[f"components.{name}"] = torch.from_numpy(np.ascontiguousarray(values))
    return tensors


def _components(tensors: dict[str, torch.Tensor]) -> Components | None:
    fields = {
        key.removeprefix("components."): tensor.numpy()
        for key, tensor in tensors.items()
        if key.startswith("components.")
    }
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
        "calibration": bundle.calibration.to_dict(),
        "patch": bundle.layout.patch,
        "model": bundle.model.config,
        "covariates": bundle.covariate_encoder and bundle.covariate_encoder.to_dict(),
        "inputs": asdict(bundle.inputs),
        "settings": bundle.config.model_dump(mode="json"),
    }

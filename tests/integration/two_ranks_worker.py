"""What each of the ranks does; results go to files, since ranks are processes."""

import json
import os

import torch
from torch import nn

from snpdeconv import MultiGPUSNPTrainer
from snpdeconv.config import load_config
from snpdeconv.errors import ResourceError, UserError
from snpdeconv.pipelines.dataset import open_cohort_together, prepare
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.pipelines.train import _agreed_precision
from snpdeconv.training import distributed
from snpdeconv.training.checkpoint import CheckpointStore
from snpdeconv.training.data import PackedLoader
from snpdeconv.training.preemption import Preempted


class Network(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Linear(5, 64), nn.Tanh(), nn.Dropout(dropout), nn.Linear(64, 1)
        ).double()
        self.micro_batches = []

    def forward(self, genotypes, covariates=None):
        self.micro_batches.append(len(genotypes))
        return self.layers(genotypes)


def cohort(num_samples, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_samples, 5, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).double()


def metrics(logits, target):
    # Depends on every sample, and on target and logit being of the same one.
    return {"rows": float(len(logits)), "product": float((logits[:, 0].double() * target).sum())}


def full_disk(*_):
    raise ResourceError("cannot write the checkpoint", where="disk")


def train(scenario, folder, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    place = distributed.init_from_environment(timeout_min=1)
    rank, world = place.rank, place.world_size

    def loader(num_samples, cohort_seed, batch_size, **options):
        x, y = cohort(num_samples, cohort_seed)
        return PackedLoader(x, y, batch_size=batch_size, rank=rank, world_size=world, **options)

    # 25 samples in batches of 8: the last batch has one sample, and the second rank none of it. Validation in
    # batches of one leaves the second rank without any sample.
    model = Network(dropout=0.3 if "dropout" in scenario else 0.0)
    train_loader = loader(25, 1, 8, shuffle=True, seed=4)
    options = {"accumulation": 2} if scenario == "accumulation" else {}
    if scenario == "different_lengths":
        train_loader.batch_size = 8 + rank * 8
    if scenario.startswith("out_of_memory") and rank == 1:
        break_memory(model, after=4 if scenario.endswith("later") else 0)
    if scenario.startswith("stop"):  # only the second rank hears the signal, and the ranks agree at step 10
        options["should_stop"] = lambda: rank == 1
    if scenario == "nan" and rank == 1:
        train_loader.packed[:] = float("nan")
    # What one rank alone meets.
    if scenario == "no_memory" and rank == 1:
        break_memory(model, after=0, most=0)
    if scenario == "height" and rank == 1:
        train_loader.target[:] = 170.0
    if scenario == "no_memory_in_validation" and rank == 0:
        break_memory(model, after=0, most=0, training=False)
    if scenario == "full_disk" and rank == 0:
        CheckpointStore.save_last = full_disk
    checkpoints = folder / "checkpoints"
    logged = []
    trainer = MultiGPUSNPTrainer(
        model,
        train_loader,
        loader(9, 2, 9 if scenario == "accumulation" else 1),
        use_amp=False,
        device="cpu",
        learning_rate=0.05,
        gradient_clip=0.1,
        metrics=metrics,
        log_metrics=lambda step, values: logged.append([step, dict(values)]),
        log_every=2,
        checkpoint_every_steps=2,
        **options,
    )
    result = {"rank": rank}
    try:
        history = trainer.train(3, 10, checkpoints)
        result["history"] = {
            name: history[name] for name in history if name.startswith(("val", "train", "lr"))
        }
        torch.save(model.layers.state_dict(), folder / f"model-{world}-{rank}.pt")
    except Preempted as stop:
        result["stopped"] = stop.step
    except UserError as error:
        result["error"] = str(error)
    result |= {"logged": logged, "micro_batches": model.micro_batches}
    (folder / f"result-{world}-{rank}.json").write_text(json.dumps(result))
    os._exit(0) if "error" in result else distributed.shut_down()


def break_memory(model, *, after, most=2, training=True):
    """This rank has memory for so many samples only, from some forward pass on."""

    def check(module, given, output):
        if module.training is training and len(model.micro_batches) > after and len(given[0]) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.register_forward_hook(check)


def share(folder, environment):
    """Work of which each rank does a part, and work that fails on the second."""
    os.environ.update(environment)
    place = distributed.init_from_environment(timeout_min=1)
    made = distributed.every_rank_does(lambda: [place.rank] * 3)

    def fails():
        if place.rank == 1:
            raise UserError("the second rank has a mistake")
        return "done"

    try:
        distributed.every_rank_does(fails)
        error = None
    except UserError as failure:
        error = str(failure)
    result = {"made": made, "error": error}
    (folder / f"result-{place.world_size}-{place.rank}.json").write_text(json.dumps(result))
    distributed.shut_down()


def prepare_alike(cases, folder, environment):
    """Both ranks prepare a cohort; in each case the second has files, settings or a home of its own."""
    os.environ.update(environment)
    place = distributed.init_from_environment(timeout_min=1)
    result = {}
    for name, (own, settings, home) in cases.items():
        first = place.rank == 0
        os.environ["SNPDECONV_HOME"] = str(folder / ("home" if first else home))
        given = Inputs.from_paths(**(next(iter(cases.values()))[0] if first else own))
        config = load_config("small_cpu", overrides=["data.num_components=2", *([] if first else settings)])
        try:
            cohort = open_cohort_together(given.genotypes, data=config.data)
            prepare(config, given, cohort=cohort)
            result[name] = None
        except UserError as error:
            result[name] = str(error)
    (folder / f"result-{place.world_size}-{place.rank}.json").write_text(json.dumps(result))
    distributed.shut_down()


def agree_on_precision(folder, environment):
    """The second rank's device has no bf16 units."""
    os.environ.update(environment)
    place = distributed.init_from_environment(timeout_min=1)
    result = {}
    for name, own in {
        "alike": ["bf16", "bf16"],
        "older": ["bf16", "fp16"],
        "oldest": ["bf16", "fp32"],
    }.items():
        torch.cpu.get_capabilities = lambda own=own: {"amx_bf16": own[place.rank] == "bf16"}
        requested = "fp16" if own[place.rank] == "fp16" else "auto"
        result[name] = _agreed_precision(torch.device("cpu"), requested=requested).name
    (folder / f"result-{place.world_size}-{place.rank}.json").write_text(json.dumps(result))
    distributed.shut_down()

"""A GPU that is none: tensors that say `cuda:0`, live on the host and keep a GPU's rules.

For code that decides by the device, on machines without one. Every torch function sees the rules first:
tensors of two devices do not mix, numpy takes none of a GPU's, and what CUDA has no kernel for is refused, by
torch's own table of operators. Batches that another thread sends are beyond it.
"""

import contextlib
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

GPU = torch.device("cuda", 0)
TOTAL_BYTES = 8 * 2**30
# Indices may be on the host, and a scalar may; these move tensors between devices.
MAY_MIX = {"__getitem__", "__setitem__", "to", "copy_", "index_put_"}


class OnGpu(torch.Tensor):
    """A tensor of the host that says it is a GPU's."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def host(value):
    return value.as_subclass(torch.Tensor) if isinstance(value, OnGpu) else value


def gpu(value):
    return value.as_subclass(OnGpu) if isinstance(value, torch.Tensor) else value


def is_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


def run(func, args, kwargs):
    name = getattr(func, "__name__", "")
    tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)]
    on_gpu = any(isinstance(one, OnGpu) for one in tensors)
    if name == "__get__" and on_gpu:
        attribute = getattr(func, "__self__", None)
        named = getattr(attribute, "__name__", "")
        if named in ("device", "is_cuda", "is_cpu"):
            return {"device": GPU, "is_cuda": True, "is_cpu": False}[named]
    if name == "_has_compatible_shallow_copy_type":  # a module that moves makes its parameters anew
        return False
    if on_gpu and name in ("numpy", "__array__"):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    if on_gpu and name not in MAY_MIX and any(not isinstance(one, OnGpu) and one.ndim for one in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
    if func is torch.linalg.lstsq and on_gpu and kwargs.get("driver") not in (None, "gels"):
        raise RuntimeError("torch.linalg.lstsq: parameter `driver` should be `gels` on CUDA")
    if func in (torch.mm, torch.matmul) and "out_dtype" in kwargs:
        left, right = map(host, args)
        if not on_gpu or {left.dtype, right.dtype} != {torch.bfloat16}:
            raise RuntimeError("mm with out_dtype is for 16-bit numbers on CUDA")
        return gpu(left.to(kwargs["out_dtype"]) @ right.to(kwargs["out_dtype"]))
    was_on_gpu = bool(tensors) and isinstance(tensors[0], OnGpu)
    if name == "cpu":
        return host(args[0]).clone()
    asked = kwargs.get("device")
    moved = [one for one in args[1:] if isinstance(one, (torch.device, str))] if name == "to" else []
    if moved or asked is not None:
        target = moved[0] if moved else asked
        on_gpu = is_gpu(target)
        args = tuple(torch.device("cpu") if one is target else one for one in args)
        kwargs = kwargs | ({"device": torch.device("cpu")} if asked is not None else {})
    elif name == "to" and len(tensors) == 2:  # as another tensor
        on_gpu = isinstance(tensors[1], OnGpu)
    rules = _Kernels() if on_gpu else contextlib.nullcontext()
    with torch._C.DisableTorchFunctionSubclass(), rules:
        result = func(*args, **kwargs)
    if name == "to" and was_on_gpu != on_gpu:
        return gpu(result.clone()) if on_gpu else host(result).clone()
    if not on_gpu:
        return result
    return tree_map(lambda one: one if isinstance(one, OnGpu) else gpu(one), result)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Kernels(TorchDispatchMode):
    """Refuses what has no kernel for CUDA, and results of more bytes than there is room for."""

    room = 2**40

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name + (f".{func._overloadname}" if func._overloadname != "default" else "")
        known = "_for_cpu" in name or name.removeprefix("aten::") in with_cuda_kernel()
        if name.startswith("aten::") and not known:
            raise NotImplementedError(f"{name} has no kernel for CUDA")
        result = func(*args, **(kwargs or {}))
        if any(isinstance(one, torch.Tensor) and one.nbytes > self.room for one in tree_iter(result)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return result


_known: set[str] = set()


def with_cuda_kernel():
    """Operators that torch's table gives a kernel for CUDA, or that are made of others."""
    if not _known:
        torchgen, yaml = pytest.importorskip("torchgen"), pytest.importorskip("yaml")
        table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
        functions = yaml.load(table.read_text(), yaml.CSafeLoader)
        for function in functions:
            keys = ",".join(function.get("dispatch", {"CompositeImplicitAutograd": ""}))
            if any(key in keys for key in ("CUDA", "Composite")) or "structured_delegate" in function:
                _known.add(function["func"].partition("(")[0])
            if function.get("autogen"):
                _known.update(one.strip() for one in function["autogen"].split(","))
    return _known


@contextlib.contextmanager
def simulated_gpu(*, free_bytes=TOTAL_BYTES, capability=(8, 0), room=2**40):
    """Torch sees one GPU within the block; `room` is for one tensor."""
    cuda = {
        "get_device_name": lambda device=None: "simulated",
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "synchronize": lambda device=None: None,
        "is_initialized": lambda: False,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda device=None: (free_bytes, TOTAL_BYTES),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "get_device_capability": lambda device=None: capability,
        "empty_cache": lambda: None,
    }
    with_cuda_kernel()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in cuda.items():
                patched.setattr(torch.cuda, name, value)
            patched.setattr(_Kernels, "room", room)
            with _Functions():
                yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)

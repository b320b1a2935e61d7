"""Out of memory is known by whoever says it, on the GPU or on the host, and answered with less at once."""

import errno

import numpy as np
import pytest
import torch

from snpdeconv.device import Halving, OomSafeBatches, or_on_the_cpu, where_memory_ran_out
from snpdeconv.epistasis import scan_pairs, screen
from snpdeconv.finemapping import tiles as device_tiles
from snpdeconv.finemapping.tiles import DeviceTiles
from snpdeconv.genetics.packed import PackedGenotypes


class TritonError(Exception):
    """As triton's own, which are no RuntimeError."""


TritonError.__module__ = "triton.runtime.errors"

ON_A_GPU = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later", 2),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnXsyevd(...)`"),
    RuntimeError(
        "cusolver error: CUSOLVER_STATUS_NOT_INITIALIZED, when calling `cusolverDnCreate(handle)`. "
        "If you keep seeing this error, you may use `torch.backends.cuda.preferred_linalg_library()`"
    ),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError(
        "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error, NCCL version 2.27.5\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
    ),
    RuntimeError("ncclUnhandledCudaError\nLast error:\nFailed to CUDA calloc async 608 bytes"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    TritonError("out of resource: shared memory, Required: 270336, Hardware limit: 232448."),
]
ON_THE_HOST = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("unable to mmap 1024 bytes from file </torch_1>: Cannot allocate memory (12)"),
    RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    MemoryError(),
    MemoryError("Unable to allocate 20.0 GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]  # fmt: skip
OTHERS = [
    ValueError("out of memory"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyError("out of memory"),
]


@pytest.mark.parametrize("error", ON_A_GPU, ids=str)
def test_what_gpus_say_is_the_gpus(error):
    assert where_memory_ran_out(error) == "GPU"


@pytest.mark.parametrize("error", ON_THE_HOST, ids=repr)
def test_what_a_host_says_is_not_a_gpus(error):
    assert where_memory_ran_out(error) == "host"


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_no_lack_of_memory(error):
    assert where_memory_ran_out(error) is None
    with pytest.raises(type(error)):
        Halving(8, smallest=1, what="samples").do(lambda size: raised(error))


def test_a_compiler_that_wraps_it_is_seen_through():
    wrapped = RuntimeError("InductorError: the backend failed")
    wrapped.__cause__ = ON_A_GPU[-1]
    assert where_memory_ran_out(wrapped) == "GPU"


def raised(error):
    raise error


@pytest.mark.parametrize("error", [ON_A_GPU[0], ON_THE_HOST[5]], ids=repr)
def test_less_at_once_until_it_fits_and_then_no_more_again(error, caplog):
    tried = []

    def work(size):
        tried.append(size)
        return raised(error) if size > 3 else size

    halving = Halving(16, smallest=1, what="people")
    assert [halving.do(work), halving.do(work)] == [2, 2]
    assert tried == [16, 8, 4, 2, 2]
    assert (
        f"out of memory with 16 people at once; going on with 8 ({where_memory_ran_out(error)}:"
        in caplog.text
    )
    assert list(OomSafeBatches().map(lambda rows: work(rows.stop - rows.start), num_samples=5)) == [2, 2, 1]


def test_the_smallest_pieces_go_to_the_cpu_and_a_host_without_memory_ends_it(caplog):
    gpu = torch.device("cuda", 0)

    def work(error):
        return or_on_the_cpu(
            lambda device: device if device.type == "cpu" else raised(error), gpu, what="single effects"
        )

    assert work(ON_A_GPU[9]) == torch.device("cpu")
    assert "no memory for single effects on cuda:0: computed on the CPU (GPU: cusolver" in caplog.text
    for error in (*ON_THE_HOST[:1], *OTHERS[:1]):
        with pytest.raises(type(error)):
            work(error)


def tight(original, room):
    """A product that has memory for so many columns only."""

    def product(left, right):
        if right.shape[1] > room:
            raise ON_A_GPU[0]
        return original(left, right)

    return product


def cohort(num_samples=200, num_variants=240):
    rng = np.random.default_rng(4)
    codes = rng.binomial(2, rng.uniform(0.2, 0.8, num_variants), size=(num_samples, num_variants))
    return codes.astype(np.uint8)


def test_a_screen_of_pairs_goes_on_with_smaller_tiles_to_the_same_pairs(monkeypatch, caplog):
    codes = cohort(num_samples=400)
    z = codes - codes.mean(axis=0)
    trait = 3 * z[:, 5] * z[:, 200] + np.random.default_rng(1).normal(size=len(codes))
    how = {"chrom": np.full(240, "1", dtype=object), "position_bp": np.arange(240) * 20_000}
    genotypes = PackedGenotypes.from_codes(codes)
    found = scan_pairs(genotypes, trait - trait.mean(), tile=240, **how)
    assert (found.i[0], found.j[0]) == (5, 200)
    monkeypatch.setattr(screen, "_product", tight(screen._product, room=64))
    again = scan_pairs(genotypes, trait - trait.mean(), tile=240, **how)
    assert "out of memory with 240 SNPs of a tile at once; going on with 120" in caplog.text
    assert "going on with 64 (GPU" in caplog.text
    assert np.array_equal(again.pairs, found.pairs)
    np.testing.assert_allclose(again.t, found.t, rtol=1e-6)


def test_a_fit_on_a_device_goes_on_with_smaller_tiles(monkeypatch, caplog):
    packed = torch.from_numpy(PackedGenotypes.from_codes(cohort()).packed)
    vectors = torch.randn(200, 2, dtype=torch.float64)
    weight = torch.randn(2, 240, dtype=torch.float64)

    def results(tiles):
        return [
            tiles.products(vectors, het=True),
            tiles.squares(vectors[:, 0].abs()),
            tiles.combine(weight),
            *tiles.gram_times(weight, beside=vectors[:, 1]),
        ]

    expected = results(DeviceTiles.of(packed, num_variants=240))
    plain = DeviceTiles._tiles

    def few(tiles, *, num):
        for rows, tile in plain(tiles, num=num):
            if len(tile) > 60:
                raise ON_A_GPU[0]
            yield rows, tile

    monkeypatch.setattr(device_tiles.DeviceTiles, "_tiles", few)
    tiles = DeviceTiles.of(packed, num_variants=240, tile_genotypes=240 * 200)
    for ours, theirs in zip(results(tiles), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert caplog.text.count("genotypes of a tile at once") == 2  # 200 people, 100, 50

import logging

import pytest
import torch

from snpdeconv.device import choose_precision, requested_precision
from snpdeconv.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    def of(capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Test GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # says yes to emulation

    return of


@pytest.mark.parametrize("requested", ["auto", "bf16"])
@pytest.mark.parametrize(
    "capability, name",
    [((8, 0), "bf16"), ((8, 6), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16")],
)
def test_a_gpu_gets_bf16_by_its_capability(gpu, caplog, requested, capability, name):
    gpu(capability)
    with caplog.at_level(logging.INFO):
        precision = choose_precision(CUDA, requested=requested)
    assert precision.name == name
    assert precision.needs_scaler == (name == "fp16")
    assert f"{capability[0]}.{capability[1]}" in caplog.text


def test_requests_for_fp16_and_fp32_are_taken_at_their_word(gpu):
    gpu((9, 0))
    fp16 = choose_precision(CUDA, requested="fp16")
    assert (fp16.dtype, fp16.needs_scaler) == (torch.float16, True)
    fp32 = choose_precision(CUDA, requested="fp32")
    assert (fp32.dtype, fp32.needs_scaler) == (None, False)


@pytest.mark.parametrize(
    "capabilities, auto, bf16",
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16", "bf16"),
        ({"avx512_bf16": True}, "fp32", "bf16"),
        ({"avx2": True}, "fp32", "fp32"),
    ],
)
def test_a_processor_gets_bf16_by_its_matrix_units(monkeypatch, capabilities, auto, bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    precision = choose_precision(CPU)
    assert precision.name == auto
    assert choose_precision(CPU, requested="bf16").name == bf16
    assert not precision.needs_scaler


@pytest.mark.parametrize("requested, dtype", [("fp32", torch.float32), ("fp16", torch.float16)])
def test_autocast_computes_in_the_chosen_type(requested, dtype):
    precision = choose_precision(CPU, requested=requested)
    with precision.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert precision.make_scaler().is_enabled() == (requested == "fp16")


def test_words():
    assert requested_precision(use_amp=True, amp_dtype=torch.bfloat16) == "bf16"
    assert requested_precision(use_amp=False, amp_dtype=torch.bfloat16) == "fp32"
    with pytest.raises(ConfigError, match="int8"):
        requested_precision(use_amp=True, amp_dtype=torch.int8)
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        choose_precision(CPU, requested="bf-16")

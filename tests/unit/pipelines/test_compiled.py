"""What one process has compiled the next one finds."""

import json
import os
import subprocess
import sys

import pytest

from snpdeconv.pipelines.fit import set_compile_cache_dir

TRAIN_COMPILED = """
import json
import torch
from torch._dynamo.utils import counters
from snpdeconv.models.model import create_gpu_optimized_model
from snpdeconv.pipelines.fit import set_compile_cache_dir

set_compile_cache_dir()
torch.manual_seed(0)
model = create_gpu_optimized_model(
    32, encoding_dim=2, architecture="cnn_transformer", use_amp=False, compile=True,
    width=16, num_layers=1, num_heads=2, patch=8,
)
genotypes = torch.randint(0, 256, (4, 8), dtype=torch.uint8)
loss = model(genotypes).square().sum()
loss.backward()
print(json.dumps({"loss": loss.item(), **counters["inductor"]}))
"""


@pytest.fixture
def environment(monkeypatch) -> None:
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_compiled_code_goes_to_the_home(environment, home):
    set_compile_cache_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "cache" / "torchinductor")
    assert os.environ["TRITON_CACHE_DIR"] == str(home / "cache" / "triton")


def test_what_torch_chose_by_itself_gives_way_and_what_the_user_named_stays(environment, home, monkeypatch):
    import torch._inductor.runtime.cache_dir_utils as torchs

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", torchs.default_cache_dir())
    monkeypatch.setenv("TRITON_CACHE_DIR", "/scratch/triton")
    set_compile_cache_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "cache" / "torchinductor")
    assert os.environ["TRITON_CACHE_DIR"] == "/scratch/triton"


@pytest.mark.slow
def test_a_second_process_compiles_nothing_anew(environment, home, tmp_path):
    temporary = tmp_path / "node"
    temporary.mkdir()

    def train() -> dict[str, float]:
        run = subprocess.run(
            [sys.executable, "-c", TRAIN_COMPILED],
            env={**os.environ, "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        result: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
        return result

    first = train()
    assert first["fxgraph_cache_miss"] > 0
    assert "fxgraph_cache_hit" not in first
    # The job's next node has a temporary folder of its own.
    for path in sorted(temporary.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    second = train()
    assert second["fxgraph_cache_hit"] == first["fxgraph_cache_miss"]
    assert "fxgraph_cache_miss" not in second
    assert second["loss"] == first["loss"]

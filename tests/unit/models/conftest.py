from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from snpdeconv.models.model import ARCHITECTURES, InterpretableSNPModel


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small() -> Callable[..., InterpretableSNPModel]:
    """Makes a small model whose every parameter has moved from its start, so that no path is silent."""

    def make(architecture: str, n_snps: int = 100, **arguments: object) -> InterpretableSNPModel:
        sizes: dict[str, object] = {
            "width": 16,
            "num_layers": 2,
            "num_heads": 2,
            "channels": (6, 9),
            "patch": 16,
        }
        torch.manual_seed(5)
        model = InterpretableSNPModel(n_snps, architecture, **{**sizes, **arguments})  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        return model

    return make


@pytest.fixture
def genotypes() -> Callable[..., torch.Tensor]:
    """Makes random codes of a few samples, some missing."""

    def make(samples: int = 6, n_snps: int = 100) -> torch.Tensor:
        return torch.randint(0, 4, (samples, n_snps), generator=torch.Generator().manual_seed(1))

    return make


@pytest.fixture
def pack() -> Callable[[torch.Tensor], torch.Tensor]:
    """Packs codes four a byte, by arithmetic of its own."""

    def make(codes: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 4), value=3).view(len(codes), -1, 4)
        return (padded << torch.tensor([0, 2, 4, 6])).sum(-1).to(torch.uint8)

    return make

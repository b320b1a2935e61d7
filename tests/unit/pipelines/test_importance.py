"""Where a GPU does not hold a single person, what a network says of SNPs is computed on the CPU."""

import numpy as np
import pytest
import torch

from snpdeconv.config import load_config
from snpdeconv.device import OomSafeBatches
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.ld import compute_blocks
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants
from snpdeconv.interpret.attribution import attention_scores, integrated_gradients
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines import score
from snpdeconv.pipelines.score import Network, RankingInput, score_variants

GPU = torch.device("cuda", 0)
METHODS = ("attention", "integrated_gradients")


@pytest.fixture
def people():
    rng = np.random.default_rng(3)
    genotypes = PackedGenotypes.from_codes(rng.binomial(2, 0.4, (40, 48)).astype(np.uint8))
    variants = Variants(
        variant_id=np.array([f"rs{n}" for n in range(48)], dtype=object),
        chrom=np.full(48, "1", dtype=object),
        position_bp=np.arange(48) * 1000 + 1,
        counted_allele=np.full(48, "A", dtype=object),
        other_allele=np.full(48, "G", dtype=object),
    )
    return RankingInput(
        genotypes=genotypes,
        target=rng.normal(size=40).astype(np.float32),
        kind="quantitative",
        classes=(),
        covariates=np.empty((40, 0), dtype=np.float32),
        variants=variants,
        blocks=compute_blocks(genotypes, variants=variants, rows=np.arange(40)),
    )


def full_on_a_gpu(look):
    """The same, but a GPU has no memory for a single person."""

    def looked(model, loader, *, device, **options):
        if torch.device(device).type == "cpu":
            return look(model, loader, device=device, **options)

        def work(rows):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return list(OomSafeBatches().map(work, num_samples=1))

    return looked


def test_what_no_gpu_holds_is_looked_at_on_the_cpu(people, monkeypatch, caplog):
    layout = Layout.from_blocks(people.blocks, chrom=people.variants.chrom, patch=16)
    torch.manual_seed(1)
    model = InterpretableSNPModel(layout.num_slots, "cnn", encoding_dim=2, width=16, patch=16)
    network = Network(model, layout, people.genotypes.take(columns=layout.columns).packed)
    how = {"methods": METHODS, "config": load_config("small_cpu"), "network": network}
    expected = score_variants(people, device=torch.device("cpu"), **how)
    moved = []
    monkeypatch.setattr(model, "to", lambda device: moved.append(device.type) or model)
    monkeypatch.setattr(score, "attribution_batch_size", lambda *_, device, safety: 8)
    for look in (attention_scores, integrated_gradients):
        monkeypatch.setattr(score, look.__name__, full_on_a_gpu(look))
    found = score_variants(people, device=GPU, **how)
    for method in METHODS:
        np.testing.assert_allclose(found.by_method[method], expected.by_method[method], rtol=1e-4)
    assert moved == 2 * ["cuda", "cpu", "cuda"]
    assert "no memory for what the network says of SNPs on cuda:0: computed on the CPU (GPU: CUDA" in (
        caplog.text
    )

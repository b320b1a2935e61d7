"""The library as its users write it: public names, DataLoaders over encoded arrays and packed genotypes."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from snpdeconv import (
    GenotypeEncoder,
    GPUMemoryManager,
    GPUOptimizedSNPModel,
    InterpretableSNPModel,
    MultiGPUSNPTrainer,
    create_gpu_optimized_model,
    create_multi_gpu_model,
)
from snpdeconv.genetics.packed import pack
from snpdeconv.training.data import PackedLoader

NUM_SNPS, CAUSAL = 48, 17


@pytest.fixture
def data():
    rng = np.random.default_rng(5)
    genotypes = rng.binomial(2, 0.4, size=(200, NUM_SNPS)).astype(np.int8)
    case = (genotypes[:, CAUSAL] + rng.normal(0, 0.3, 200) > 0.9).astype(np.float32)
    return genotypes, case


def loaders(x, y):
    train = DataLoader(TensorDataset(x[:150], y[:150]), batch_size=25, shuffle=True)
    return train, DataLoader(TensorDataset(x[150:], y[150:]), batch_size=50)


@pytest.mark.parametrize("architecture", ["cnn", "cnn_transformer", "gnn"])
def test_train_on_encoded_arrays_and_ask_for_importance(data, tmp_path, architecture):
    genotypes, case = data
    x = GenotypeEncoder().haplotype_encoding(genotypes)
    assert x.shape == (200, NUM_SNPS, 8)
    train_loader, val_loader = loaders(x, torch.from_numpy(case))
    model = create_gpu_optimized_model(
        NUM_SNPS, encoding_dim=8, architecture=architecture, width=16, num_layers=1, num_heads=2,
        channels=(6, 6), patch=16,
    )  # fmt: skip
    assert isinstance(model, GPUOptimizedSNPModel)
    trainer = MultiGPUSNPTrainer(
        create_multi_gpu_model(model, gpu_ids=[0, 1, 2, 3] if torch.cuda.is_available() else []),
        train_loader,
        val_loader,
        use_amp=True,
        amp_dtype=torch.bfloat16,
        learning_rate=5e-3,
    )
    history = trainer.train(num_epochs=8, early_stopping_patience=8, checkpoint_dir=tmp_path)
    assert len(history["val_loss"]) == 8
    assert min(history["val_loss"]) < history["val_loss"][0]
    importance = trainer.get_snp_importance(val_loader, method="integrated_gradients", aggregate="mean")
    assert len(importance) == NUM_SNPS
    assert max(importance, key=importance.get) == str(CAUSAL)
    attention = trainer.get_snp_importance(val_loader, method="attention", aggregate="mean")
    assert sum(attention.values()) == pytest.approx(1.0, abs=1e-3)


def test_train_on_codes_and_on_the_packed_store(data, tmp_path):
    genotypes, case = data
    packed = PackedLoader(
        torch.from_numpy(pack(genotypes.astype(np.uint8))),
        torch.from_numpy(case),
        batch_size=25,
        shuffle=True,
    )
    codes = DataLoader(TensorDataset(torch.from_numpy(genotypes), torch.from_numpy(case)), batch_size=25)
    for loader in (packed, codes):
        torch.manual_seed(0)
        model = InterpretableSNPModel(NUM_SNPS, "cnn", encoding_dim=2, channels=(6, 6), width=16, patch=16)
        trainer = MultiGPUSNPTrainer(model, loader, codes, use_amp=False, learning_rate=2e-2)
        history = trainer.train(5, 5)
        assert history["val_loss"][-1] < history["val_loss"][0]


def test_memory_manager_suggests_batches():
    manager = GPUMemoryManager()
    best = manager.get_optimal_batch_size(256, encoding_dim=8, dtype=torch.float32, max_batch=64)
    assert 1 <= best <= 64
    sizes = manager.get_batch_size_range(256, encoding_dim=8, max_batch=64)
    assert sizes["careful"] <= sizes["balanced"] <= sizes["bold"]
    manager.clear_cache()


def test_encodings_and_normalisation(data):
    genotypes, _ = data
    encoder = GenotypeEncoder()
    assert encoder.additive_encoding(genotypes).shape == (200, NUM_SNPS, 1)
    assert encoder.one_hot_encoding(genotypes).shape == (200, NUM_SNPS, 4)
    normalised = encoder.normalize_genotypes(genotypes)
    np.testing.assert_allclose(normalised.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(0, correction=0), 1, atol=1e-4)

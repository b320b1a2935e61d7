"""The peer of the throughput benchmark: a transformer over one-hot SNPs, as one would write it for one study.

A Dataset that encodes a sample at a time, a DataLoader, torch's own encoder layers, a plain training loop.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class GenotypeDataset(Dataset[tuple[Tensor, Tensor]]):
    """One-hot genotypes (S, 4) of one sample at a time, from an (N, S) matrix of 0, 1, 2 and 3 (missing)."""

    def __init__(self, genotypes: Tensor, target: Tensor) -> None:
        self.genotypes, self.target = genotypes, target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return F.one_hot(self.genotypes[index].long(), 4).float(), self.target[index]


class PlainTransformer(nn.Module):
    """A token for each ``patch`` SNPs, by a matrix of its own; torch's encoder; the mean of the tokens."""

    def __init__(
        self, num_snps: int, *, patch: int, width: int, num_layers: int, num_heads: int, dropout: float
    ):
        super().__init__()
        self.patch, self.num_tokens = patch, -(-num_snps // patch)
        self.embedding = nn.Parameter(torch.randn(self.num_tokens, patch, 4, width) * (4 * patch) ** -0.5)
        self.position = nn.Parameter(torch.zeros(self.num_tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, 4) one-hot -> (B,)."""
        x = F.pad(x, (0, 0, 0, self.num_tokens * self.patch - x.shape[1]))
        tokens = torch.einsum("bkpc,kpcd->bkd", x.unflatten(1, (self.num_tokens, self.patch)), self.embedding)
        return self.head(self.encoder(tokens + self.position).mean(1)).squeeze(-1)


def train(
    genotypes: Tensor, target: Tensor, *, batch: int, num_steps: int, device: torch.device, **sizes: object
):
    """Takes steps and yields after each of them."""
    model = PlainTransformer(genotypes.shape[1], **sizes).to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loader = DataLoader(GenotypeDataset(genotypes, target), batch_size=batch, shuffle=True, drop_last=True)
    done = 0
    while done < num_steps:
        for x, y in loader:
            loss = F.mse_loss(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()
            done += 1
            if done == num_steps:
                return

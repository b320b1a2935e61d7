import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from torch.utils.data import DataLoader, TensorDataset

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.training.step import (
    CrossEntropyLoss,
    FocalLoss,
    SquaredErrorLoss,
    balanced_class_weights,
    check_target,
    make_loss,
)
from snpdeconv.training.trainer import MultiGPUSNPTrainer

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 0.7, 6.0], dtype=torch.float64)
TARGET = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)


def test_binary_focal_loss_is_the_papers_formula():
    p = expit(LOGITS.numpy())
    is_one = TARGET.numpy() == 1
    p_right = np.where(is_one, p, 1 - p)
    expected = -np.where(is_one, 0.25, 0.75) * (1 - p_right) ** 2 * np.log(p_right)
    for logits in (LOGITS, LOGITS[:, None]):
        np.testing.assert_allclose(FocalLoss()(logits, TARGET).numpy(), expected, rtol=1e-12)


def test_multiclass_focal_loss_is_weighted_by_class():
    logits = torch.tensor([[2.0, -1.0, 0.3], [0.1, 0.2, 0.3], [-4.0, 5.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([2, 0, 1])
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    log_p = log_softmax(logits.numpy(), axis=1)[np.arange(3), target.numpy()]
    expected = -weights.numpy()[target.numpy()] * (1 - np.exp(log_p)) ** 1.5 * log_p
    loss = FocalLoss(gamma=1.5, class_weights=weights)(logits, target)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradients_are_finite_for_the_most_extreme_logits(gamma):
    logits = torch.tensor([-200.0, -30.0, 30.0, 200.0, 200.0], requires_grad=True)
    FocalLoss(gamma=gamma)(logits, torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_class_weights_replace_alpha_in_a_binary_focal_loss():
    loss = FocalLoss(gamma=0.0, class_weights=torch.tensor([1.0, 3.0], dtype=torch.float64))
    plain = CrossEntropyLoss()(LOGITS, TARGET)
    torch.testing.assert_close(loss(LOGITS, TARGET), plain * (1 + 2 * TARGET))


def test_cross_entropy_and_squared_error_against_torch():
    functional = torch.nn.functional
    expected = functional.binary_cross_entropy_with_logits(LOGITS, TARGET, reduction="none")
    torch.testing.assert_close(CrossEntropyLoss()(LOGITS[:, None], TARGET.long()), expected)
    logits, classes = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 2, 1, 1]),
    )
    torch.testing.assert_close(
        CrossEntropyLoss()(logits, classes), functional.cross_entropy(logits, classes, reduction="none")
    )
    torch.testing.assert_close(SquaredErrorLoss()(LOGITS[:, None], TARGET), (LOGITS - TARGET) ** 2)


def test_half_precision_logits_are_taken_to_full_precision():
    for loss in (FocalLoss(), CrossEntropyLoss(), SquaredErrorLoss()):
        assert loss(LOGITS.bfloat16(), TARGET.float()).dtype == torch.float32


def test_balanced_weights_give_every_class_the_same_sum():
    target = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    weights = balanced_class_weights(target, 3)
    sums = [float(weights[c]) * int((target == c).sum()) for c in range(3)]
    assert sums == pytest.approx([100 / 3] * 3)
    assert balanced_class_weights(torch.tensor([0.0, 1.0, 1.0]), 2).tolist() == pytest.approx([1.5, 0.75])
    assert balanced_class_weights(torch.tensor([0, 2]), 3).tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_names():
    assert isinstance(make_loss("focal"), FocalLoss)
    assert isinstance(make_loss("cross_entropy"), CrossEntropyLoss)
    assert isinstance(make_loss("mse"), SquaredErrorLoss)
    with pytest.raises(ConfigError, match="did you mean 'focal'"):
        make_loss("fokal")


@pytest.mark.parametrize("name", ["focal", "cross_entropy"])
@pytest.mark.parametrize(
    ("num_outputs", "value", "told"),
    [
        (1, 170.0, "the value 170 is none of the 2 classes"),
        (1, -1.0, "the value -1 is none of the 2 classes"),
        (1, 0.5, "the value 0.5 is none"),
        (3, 3, "the value 3 is none of the 3 classes, which are the whole numbers from 0 to 2"),
        (3, 1.5, "the value 1.5 is none"),
    ],
)
def test_a_target_that_is_no_class_is_refused(name, num_outputs, value, told):
    target = torch.tensor([0, 1, value])
    with pytest.raises(InputError, match=f"^target: {told}.*loss='mse'"):
        check_target(make_loss(name), torch.zeros(3, num_outputs), target)
    check_target(make_loss(name), torch.zeros(3, num_outputs), torch.tensor([0.0, 1.0, torch.nan]))
    check_target(torch.nn.BCEWithLogitsLoss(reduction="none"), torch.zeros(3, num_outputs), target)


@pytest.mark.parametrize(("name", "num_outputs"), [("mse", 3), ("focal", 1)])
def test_a_target_of_another_shape_is_refused(name, num_outputs):
    with pytest.raises(InputError, match=r"target: 4 values for logits of shape \(2, "):
        check_target(make_loss(name), torch.zeros(2, num_outputs), torch.zeros(4))


def test_heights_are_refused_by_the_trainer_s_default_loss():
    x = torch.randn(8, 4)
    late = torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 170])
    whole = torch.tensor([0.0, 1, 0, 1, 0, 1, 0, 1])

    def trainer(train: torch.Tensor, val: torch.Tensor, **how: str) -> MultiGPUSNPTrainer:
        loaders = [DataLoader(TensorDataset(x, y), batch_size=2) for y in (train, val)]
        return MultiGPUSNPTrainer(torch.nn.Linear(4, 1), *loaders, use_amp=False, device="cpu", **how)

    for train, val in ((late, whole), (whole, late)):
        with pytest.raises(InputError, match="the value 170 is none of the 2 classes"):
            trainer(train, val).train(1)
    trainer(late, late, loss="mse").train(1)

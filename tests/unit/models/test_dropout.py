import pytest
import torch

from snpdeconv.models.layers import Dropout


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(1)
    x = torch.ones(1001, 999)
    out = Dropout(p)(x)
    dropped = (out == 0).float()
    assert float(dropped.mean()) == pytest.approx(p, abs=0.003)
    assert float(out.mean()) == pytest.approx(1, abs=0.01)
    # Rows and columns are alike, neighbours do not depend on each other.
    assert float(dropped.mean(0).std()) == pytest.approx((p * (1 - p) / 1001) ** 0.5, rel=0.1)
    assert abs(float(((dropped[:, 1:] - p) * (dropped[:, :-1] - p)).mean())) < 0.001


def test_gradients_are_those_of_what_is_kept():
    torch.manual_seed(1)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    out = Dropout(0.5)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x, out)
    assert out.dtype == torch.float64


def test_the_same_seed_drops_the_same():
    x = torch.ones(33)
    torch.manual_seed(7)
    first = Dropout(0.3)(x)
    torch.manual_seed(7)
    assert torch.equal(first, Dropout(0.3)(x))
    assert not torch.equal(first, Dropout(0.3)(x))


def test_nothing_happens_outside_training_or_without_a_probability():
    x = torch.randn(5)
    assert torch.equal(Dropout(0.3).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_a_compiled_network_stays_one_graph():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(Dropout(0.3), backend=counter, fullgraph=True)
    out = compiled(torch.ones(50, 40))
    assert counter.frame_count == 1
    assert 0 < int((out == 0).sum()) < 2000

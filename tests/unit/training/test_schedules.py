import numpy as np
import pytest
import torch

from snpdeconv.errors import ConfigError
from snpdeconv.training.run_state import make_schedule

DEFAULTS = {
    "total_steps": 20,
    "warmup_fraction": 0.2,
    "direction": "min",
    "plateau_factor": 0.1,
    "plateau_patience": 1,
}


def optimizer(rate=0.5):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rate_of(opt):
    return opt.param_groups[0]["lr"]


def test_cosine_warms_up_linearly_and_falls_to_zero():
    opt = optimizer()
    schedule = make_schedule("cosine", opt, **DEFAULTS)
    rates = [rate_of(opt)]
    for step in range(1, 21):
        schedule.after_step(step)
        schedule.after_epoch(99.0)  # an epoch's value must not matter
        rates.append(rate_of(opt))
    np.testing.assert_allclose(rates[:4], 0.5 * np.array([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(rates[4:], 0.25 * (1 + np.cos(np.pi * np.arange(17) / 16)), atol=1e-12)
    assert rates[-1] == pytest.approx(0.0)


def test_cosine_is_a_function_of_the_step():
    straight, resumed = optimizer(), optimizer()
    first = make_schedule("cosine", straight, **DEFAULTS)
    for step in range(1, 12):
        first.after_step(step)
    second = make_schedule("cosine", resumed, **DEFAULTS)
    second.load_state_dict(first.state_dict())
    second.after_step(11)
    assert rate_of(straight) == rate_of(resumed)


def test_plateau_lowers_the_rate_by_epoch_only_and_remembers():
    opt = optimizer()
    schedule = make_schedule("plateau", opt, **DEFAULTS)
    for step in range(100):
        schedule.after_step(step)
    assert rate_of(opt) == 0.5
    for value in (1.0, 0.9, 0.95):
        schedule.after_epoch(value)
    assert rate_of(opt) == 0.5
    other = optimizer()
    resumed = make_schedule("plateau", other, **DEFAULTS)
    resumed.load_state_dict(schedule.state_dict())
    for part, who in ((schedule, opt), (resumed, other)):
        part.after_epoch(0.95)
        assert rate_of(who) == pytest.approx(0.05)


def test_constant_stays():
    opt = optimizer()
    schedule = make_schedule("constant", opt, **{**DEFAULTS, "total_steps": None})
    schedule.after_step(5)
    schedule.after_epoch(1.0)
    schedule.load_state_dict(schedule.state_dict())
    assert rate_of(opt) == 0.5


def test_mistakes():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        make_schedule("cosinus", optimizer(), **DEFAULTS)
    with pytest.raises(ConfigError, match="length"):
        make_schedule("cosine", optimizer(), **{**DEFAULTS, "total_steps": None})

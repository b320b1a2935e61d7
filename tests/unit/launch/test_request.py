"""What a job asks for; whether a real SLURM would take it is tested in tests/slurm."""

import pytest

from snpdeconv.config import load_config
from snpdeconv.errors import ConfigError
from snpdeconv.launch.scheduler import minutes
from snpdeconv.launch.site import LOCAL, make_request
from snpdeconv.launch.submit import choose_target


@pytest.mark.parametrize(
    "text, expected",
    [("infinite", None), ("30:00", 30), ("1-02:03:00", 1563), ("4:00:30", 241), ("UNLIMITED", None)],
)
def test_time_limits(text, expected):
    assert minutes(text) == expected


def test_presets_become_requests():
    large = make_request(load_config("large_multi_gpu"))
    assert (large.nodes, large.tasks_per_node, large.num_tasks) == (1, 4, 4)
    assert make_request(load_config("small_cpu")).tasks_per_node == 1
    one = make_request(load_config("large_multi_gpu"), one_process=True)
    assert (one.num_tasks, one.gpus_per_node) == (1, 1)


def test_the_notice_is_no_more_than_a_part_of_the_time():
    config = load_config("small_cpu", overrides=["resources.timeout_min=2", "resources.signal_delay_s=90"])
    assert make_request(config).signal_delay_s == 30


def test_a_training_on_gpus_that_are_not_here_is_refused():
    config = load_config("large_multi_gpu")
    told = r"the job asks for 99 GPUs, and this machine has .*--set resources.gpus_per_node="
    with pytest.raises(ConfigError, match=told):
        choose_target(load_config("large_multi_gpu", overrides=["resources.gpus_per_node=99"]), site=LOCAL)
    on_cpu = load_config("large_multi_gpu", overrides=["resources.gpus_per_node=0"])
    assert choose_target(on_cpu, site=LOCAL).request.num_tasks == 1
    assert choose_target(config, site=LOCAL, one_process=True, trains=False).request.num_tasks == 1

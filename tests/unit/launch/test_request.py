"""What a job asks for, and whether the nodes that sinfo told of can give it."""

import logging

import pytest

from snpdeconv.config import load_config
from snpdeconv.errors import ConfigError
from snpdeconv.launch.inventory import check_request, minutes, parse_inventory
from snpdeconv.launch.request import Request, make_request
from snpdeconv.launch.site import Site

# sinfo --noheader --exact --format='%P|%a|%l|%D|%c|%m|%G|%f|%t', recorded, with two lines more.
SINFO = """\
cpu*|up|1-00:00:00|1|8|16000|(null)|(null)|idle
gpu|up|1-00:00:00|1|8|16000|gpu:a100:4|(null)|mix
gpu|up|1-00:00:00|1|8|16000|gpu:a100:4|(null)|down*
scavenge|up|infinite|2|8|16000|gpu:a100:4|(null)|idle
big|up|2-00:00:00|12|128|515000|gpu:a100:8(S:0-7),gpu:v100:2|a100,nvlink|alloc
old|inact|30:00|3|32|191000+|gpu:2|haswell|drain
"""


def asking(**resources: int) -> Request:
    asked = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 2, "mem_gib": 4,
             "timeout_min": 60, "signal_delay_s": 30}  # fmt: skip
    return Request(**(asked | resources))


def check(request: Request, **facts: object) -> str:
    return check_request(request, site=Site(name="here", **facts), groups=parse_inventory(SINFO))


def test_sinfo_is_read():
    groups = {group.partition: group for group in parse_inventory(SINFO)}
    assert groups["cpu"].is_default
    assert not groups["big"].is_default
    assert (groups["cpu"].limit_min, groups["scavenge"].limit_min) == (1440, None)
    assert groups["big"].gpus == {"a100": 8, "v100": 2}
    assert groups["old"].gpus == {"": 2}
    assert (groups["big"].in_service, groups["old"].in_service, groups["gpu"].in_service) == (
        True,
        False,
        False,
    )
    assert groups["big"].features == {"a100", "nvlink"}


@pytest.mark.parametrize(
    "text, expected",
    [("infinite", None), ("30:00", 30), ("1-02:03:00", 1563), ("4:00:30", 241), ("UNLIMITED", None)],
)
def test_time_limits(text, expected):
    assert minutes(text) == expected


def test_what_fits_goes_to_its_partition():
    assert check(asking()) == "cpu"
    assert check(asking(gpus_per_node=4, tasks_per_node=4), gpu_partition="gpu") == "gpu"
    assert (
        check(asking(gpus_per_node=8, nodes=12), partition="big", gpu_type="a100", constraint="a100&nvlink")
        == "big"
    )
    assert check(asking(gpus_per_node=99), partition="cpu", gpu_request="none") == "cpu"
    # Only SLURM knows what such a constraint means.
    assert check(asking(), partition="big", constraint="[rack1|rack2]") == "big"


@pytest.mark.parametrize(
    "request_, facts, told",
    [
        (asking(), {"partition": "gpus"}, r"there is no partition 'gpus'; did you mean 'gpu'\?"),
        (asking(), {"partition": "old"}, r"partition 'old' starts no jobs now"),
        (
            asking(timeout_min=2000),
            {},
            r"2000 min, and partition 'cpu' allows 1440; --set resources.timeout_min=1440",
        ),
        (
            asking(gpus_per_node=1),
            {},
            r"1 GPUs a node, and partition 'cpu' has at most 0; .*--partition with GPUs",
        ),
        (
            asking(gpus_per_node=3),
            {"partition": "big", "gpu_type": "v100"},
            r"at most 2; --set resources.gpus_per_node=2",
        ),
        (
            asking(tasks_per_node=4, cpus_per_task=4),
            {},
            r"16 CPUs a node, .* 8; --set resources.cpus_per_task=2",
        ),
        (asking(mem_gib=16), {}, r"16 GiB of memory a node, .* 15; --set resources.mem_gib=15"),
        (asking(nodes=3), {"partition": "gpu"}, r"3 nodes, and 2 of partition 'gpu' are large enough"),
        (
            asking(),
            {"partition": "big", "constraint": "h100"},
            r"no node .* has the features h100; its nodes have a100, nvlink",
        ),
    ],
)
def test_what_could_never_start_is_refused(request_, facts, told):
    with pytest.raises(ConfigError, match=told) as error:
        check(request_, **facts)
    assert str(error.value).startswith("cluster here: ")
    assert "\n" not in str(error.value)


def test_what_has_to_wait_for_nodes_that_are_down_is_said(caplog):
    with caplog.at_level(logging.WARNING, logger="snpdeconv"):
        check(asking(nodes=2), partition="gpu")
    assert "1 of the 2 nodes that could run the job are in service; it will wait" in caplog.text


def test_presets_become_requests():
    large = make_request(load_config("large_multi_gpu"))
    assert (large.nodes, large.tasks_per_node, large.num_tasks) == (1, 4, 4)
    assert make_request(load_config("small_cpu")).tasks_per_node == 1
    one = make_request(load_config("large_multi_gpu"), one_process=True)
    assert (one.num_tasks, one.gpus_per_node) == (1, 1)


def test_the_notice_is_no_more_than_a_part_of_the_time():
    config = load_config("small_cpu", overrides=["resources.timeout_min=2", "resources.signal_delay_s=90"])
    assert make_request(config).signal_delay_s == 30

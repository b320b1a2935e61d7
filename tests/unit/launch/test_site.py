"""Files with the facts of a cluster: what is read, and how mistakes are told."""

from pathlib import Path

import pytest

from snpdeconv.errors import ConfigError, ResourceError
from snpdeconv.launch.site import known_sites, load_site

EXAMPLES = Path(__file__).parents[3] / "jobs" / "clusters"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_sites(path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    site = load_site(str(path))
    assert site.name == path.stem
    assert (site.container.runtime == "none") == ("$HOME" not in path.read_text().split("scheduler")[1])


def test_here_and_this_machine():
    assert load_site(None).scheduler == "auto"
    assert load_site("local").scheduler == "local"


def test_names_are_the_projects_before_those_of_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"slurm", "apptainer", "pyxis"} <= set(known_sites())
    (tmp_path / "jobs" / "clusters").mkdir(parents=True)
    for name in ("slurm", "mine"):
        (tmp_path / "jobs" / "clusters" / f"{name}.yaml").write_text("partition: mine\nsetup: [touch ran]\n")
    assert load_site("mine").partition == "mine"
    assert load_site("slurm").partition != "mine"
    assert load_site("jobs/clusters/slurm.yaml").partition == "mine"  # by its path, whose it is, is plain
    (tmp_path / "jobs" / "clusters" / "mine.yaml").chmod(0o666)
    with pytest.raises(ResourceError, match=r"mine.yaml: others may write it.*; chmod go-w"):
        load_site("mine")
    with pytest.raises(ConfigError, match=r"there is no cluster 'slrm'; did you mean 'slurm'\?"):
        load_site("slrm")


def test_variables_are_those_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    path = write(tmp_path, "folder: $SCRATCH/runs\nsetup: ['export A=$B']\nenvironment: {THREADS: 4}\n")
    site = load_site(path)
    assert site.folder == "/scratch/me/runs"
    assert site.setup == ("export A=$B",)  # the job's shell fills it in
    assert site.environment == {"THREADS": "4"}
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(ConfigError, match=r"needs the variable \$SCRATCH, which is not set"):
        load_site(path)


def test_partition_by_gpus(tmp_path):
    site = load_site(write(tmp_path, "partition: cpu\ngpu_partition: gpu\n"))
    assert site.partition_for(gpus_per_node=0) == "cpu"
    assert site.partition_for(gpus_per_node=2) == "gpu"
    assert load_site(write(tmp_path, "partition: all\n")).partition_for(gpus_per_node=2) == "all"


@pytest.mark.parametrize(
    "text, told",
    [
        ("partiton: gpu\n", r"mine.yaml: partiton: there is no such fact; did you mean 'partition'\?"),
        ("container: {runtime: docker}\n", r"container.runtime: .*'apptainer'.*\(given: 'docker'\)"),
        ("container: {runtime: pyxis}\n", r"mine.yaml: container: a runtime needs an image"),
        ("container: {image: x.sif}\n", r"mine.yaml: container: an image needs a runtime"),
        ("container: {imge: x}\n", r"container.imge: there is no such fact; did you mean 'image'\?"),
        ("max_requeues: -1\n", r"max_requeues: .*greater than or equal to 0 \(given: '-1'\)"),
        ("environment: {'A=1; touch ran #': x}\n", r"environment: .* cannot name a variable"),
        ("partition: a\npartition: b\n", r"key 'partition' stands twice"),
        ("- a\n", r"holds no facts of a cluster"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told) as error:
        load_site(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        load_site(str(tmp_path / "none.yaml"))


def test_what_looks_like_numbers_stays_as_it_is_written(tmp_path):
    site = load_site(
        write(
            tmp_path,
            "partition: 2024\naccount: 0123\nqos: 1e3\ngpu_type: 3090\nmax_requeues: 3\nconstraint:\n"
            "sbatch: {begin: 12:30:00, exclusive: true, no-requeue: yes, hold: false, licenses: 1_0}\n"
            "environment: {A: 010, B: on, C: 2024-01-01}\n",
        )
    )
    assert (site.partition, site.account, site.qos, site.gpu_type) == ("2024", "0123", "1e3", "3090")
    assert (site.max_requeues, site.constraint) == (3, None)
    assert site.sbatch == {
        "begin": "12:30:00", "exclusive": True, "no-requeue": True, "hold": False, "licenses": "1_0"
    }  # fmt: skip
    assert site.environment == {"A": "010", "B": "on", "C": "2024-01-01"}


def test_the_profile_of_the_user_is_followed_or_named(tmp_path, monkeypatch, caplog):
    for name in ("ACCOUNT", "QOS", "PARTITION", "RESERVATION"):
        monkeypatch.setenv(f"SBATCH_{name}", f"my-{name.lower()}")
    with caplog.at_level("INFO", logger="snpdeconv"):
        site = load_site(write(tmp_path, "qos: long\n"))
    assert (site.account, site.qos, site.partition) == ("my-account", "long", "my-partition")
    assert "account my-account, from SBATCH_ACCOUNT" in caplog.text
    assert "SBATCH_QOS=my-qos is not followed: the cluster's file has long" in caplog.text
    assert "not passed on to SLURM: SBATCH_RESERVATION" in caplog.text
    assert load_site(None).account == "my-account"

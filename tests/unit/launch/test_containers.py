"""What a job brings into a container, and what is told when the image has no place for it."""

import shlex
from pathlib import Path

import pytest

from snpdeconv.errors import ConfigError
from snpdeconv.launch.site import Container, check_mount_points, interpreter, mounts

NEEDS = (Path("/scratch/me/run"), Path("/data/cohort"), Path("/scratch/me/run/log"))


def in_folder(image: Path, *site_mounts: str) -> Container:
    return Container(runtime="charliecloud", image=str(image), mounts=site_mounts)


def test_what_a_mount_shows_already_is_not_mounted_again():
    container = in_folder(Path("/image"), "/scratch", "/lustre/data:/data")
    # A mount at another place shows nothing at its own path.
    assert mounts(container, needs=NEEDS) == ["/scratch", "/lustre/data:/data", "/data/cohort"]


def test_the_jobs_variables_come_after_the_images(tmp_path):
    words = shlex.split(
        interpreter(in_folder(tmp_path), needs=(), variables={"A": "a $b 'c'"}, with_gpus=False)
    )
    assert words.index("--set-env") < words.index("--set-env=A=a $b 'c'") < words.index(str(tmp_path))


def test_an_image_without_the_places_to_mount_is_told(tmp_path):
    container = in_folder(tmp_path, "/scratch", "/opt/site:/mnt/0")
    (tmp_path / "mnt/0").mkdir(parents=True)
    needs = (*NEEDS, Path("/tmp/me"))
    with pytest.raises(ConfigError, match=r"no place to mount /scratch; mkdir -p (\S+) (\S+), or") as error:
        check_mount_points(container, needs=needs)
    places = str(error.value).partition("mkdir -p ")[2].partition(",")[0].split()
    assert places == [f"{tmp_path}/scratch", f"{tmp_path}/data/cohort"]
    for place in places:
        Path(place).mkdir(parents=True)
    check_mount_points(container, needs=needs)


def test_an_image_file_is_not_looked_into(tmp_path):
    (tmp_path / "image.sqfs").touch()
    check_mount_points(in_folder(tmp_path / "image.sqfs"), needs=NEEDS)


@pytest.mark.parametrize("name", ["a:b", "a,b"])
def test_a_name_that_would_part_a_mount_is_refused(name):
    needs = (Path("/data") / name,)
    with pytest.raises(ConfigError, match=f"^/data/{name}: holds a ':' or ','"):
        mounts(in_folder(Path("/image")), needs=needs)
    assert mounts(in_folder(Path("/image"), "/data"), needs=needs) == ["/data"]

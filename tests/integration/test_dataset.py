"""What a cohort's table holds beside the trait, and people left out, on the way to a dataset."""

import logging
import shutil

import numpy as np
import pandas as pd
import pytest

from snpdeconv.config import load_config
from snpdeconv.errors import InputError
from snpdeconv.pipelines.dataset import open_cohort, prepare
from snpdeconv.pipelines.inputs import Inputs


@pytest.fixture
def files(cohort, tmp_path):
    return shutil.copytree(cohort, tmp_path / "files")


def edit(files, **columns):
    table = pd.read_csv(files / "phenotypes.tsv", sep="\t", dtype=str)
    table.assign(**columns).to_csv(files / "phenotypes.tsv", sep="\t", index=False)
    return len(table)


def inputs(files, **more):
    return Inputs.from_paths(
        genotypes=files / "cohort.bed", phenotypes=files / "phenotypes.tsv", trait="trait", **more
    )


def prepared(given):
    config = load_config("small_cpu")
    return prepare(config, given, cohort=open_cohort(given.genotypes, multiallelic=config.data.multiallelic))


def without_genotypes(files, people):
    """Sets most genotypes of these people to missing in the .bed."""
    path = files / "cohort.bed"
    num_people = len((files / "cohort.fam").read_text().splitlines())
    calls = np.frombuffer(path.read_bytes()[3:], dtype=np.uint8).reshape(-1, -(-num_people // 4)).copy()
    for person in people:
        shift = 2 * (person % 4)
        column = calls[: len(calls) // 2, person // 4]
        column &= 0xFF ^ (3 << shift)
        column |= 1 << shift
    path.write_bytes(b"\x6c\x1b\x01" + calls.tobytes())


def test_trait_and_groups_are_no_covariates(files, caplog):
    caplog.set_level(logging.INFO)
    num_people = len(pd.read_csv(files / "phenotypes.tsv", sep="\t"))
    number = np.arange(num_people)
    edit(files, household=number // 2, age=20 + number % 50)
    table = files / "phenotypes.tsv"
    dataset = prepared(inputs(files, covariates=table, groups="household"))
    names = [feature.name for feature in dataset.covariate_encoder.features]
    assert "age" in names
    assert not {"trait", "household"} & set(names)
    assert "'trait', 'household' is trait or group and no covariate" in caplog.text.replace(
        "'household', 'trait'", "'trait', 'household'"
    )
    alone = prepared(inputs(files, covariates=table))
    assert "household" in [feature.name for feature in alone.covariate_encoder.features]


def test_a_class_that_gets_too_small_without_people_of_few_genotypes(files):
    num_people = len(pd.read_csv(files / "phenotypes.tsv", sep="\t"))
    edit(
        files,
        trait=np.where(np.arange(num_people) < 6, "rare", np.where(np.arange(num_people) % 2, "a", "b")),
    )
    assert prepared(inputs(files)).trait.classes == ("a", "b", "rare")
    without_genotypes(files, range(2))
    with pytest.raises(InputError) as caught:
        prepared(inputs(files))
    assert (
        "class 'rare' of trait 'trait' has 4 people, fewer than 5 once 2 people beyond "
        "data.sample_missing_max are left out" in str(caught.value)
    )


def test_a_quantity_that_stops_varying_without_people_of_few_genotypes(files):
    num_people = len(pd.read_csv(files / "phenotypes.tsv", sep="\t"))
    edit(files, trait=np.where(np.arange(num_people) < 3, np.arange(num_people), 7.5))
    without_genotypes(files, range(3))
    with pytest.raises(InputError, match=r"trait 'trait' is '7\.5' for all .* once 3 people beyond"):
        prepared(inputs(files))

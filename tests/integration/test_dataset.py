"""What a cohort's table holds beside the trait, and people left out, on the way to a dataset."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from snpdeconv.config import load_config
from snpdeconv.errors import InputError
from snpdeconv.genetics.samples import Samples
from snpdeconv.pipelines.dataset import open_cohort, prepare
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.simulation.writers import write_bed


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
    return prepare(config, given, cohort=open_cohort(given.genotypes, data=config.data))


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


def test_people_used_are_those_who_are_used(files):
    without_genotypes(files, [0, 5, 9])
    dataset = prepared(inputs(files))
    assert dataset.report["people_too_missing"] == 3
    assert dataset.report["people_used"] == len(dataset.trait.rows) == len(dataset.target)


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
        "class 'rare' of trait 'trait' has 4 people, fewer than 5 once 2 people are left out by "
        "lists, covariates or data.sample_missing_max" in str(caught.value)
    )


def test_a_quantity_that_stops_varying_without_people_of_few_genotypes(files):
    num_people = len(pd.read_csv(files / "phenotypes.tsv", sep="\t"))
    edit(files, trait=np.where(np.arange(num_people) < 3, np.arange(num_people), 7.5))
    without_genotypes(files, range(3))
    with pytest.raises(InputError, match=r"trait 'trait' is '7\.5' for all .* once 3 people are left out"):
        prepared(inputs(files))


def test_one_person_under_two_ids_is_on_one_side_of_every_split(files, caplog, tmp_path):
    """Everyone is there twice: under an ID of a test person too, whom a champion was tested on."""
    given = inputs(files)
    cohort = open_cohort(given.genotypes, data=load_config("small_cpu").data)
    codes, num_people = cohort.genotypes.codes(), len(cohort.samples)
    iid = [f"{name}{more}" for more in ("", "again") for name in cohort.samples.iid]
    both = Samples.build(iid)
    write_bed(files / "both", np.vstack([codes, codes]), variants=cohort.variants, samples=both)
    trait = pd.read_csv(files / "phenotypes.tsv", sep="\t")["trait"]
    pd.DataFrame({"IID": iid, "trait": [*trait, *trait + 0.01]}).to_csv(
        files / "both.tsv", sep="\t", index=False
    )
    given = Inputs.from_paths(genotypes=files / "both.bed", phenotypes=files / "both.tsv", trait="trait")
    dataset = prepared(given)
    assert dataset.report["people_copies"] == num_people
    assert "people have the genotypes of another one" in caplog.text
    train, val, test = (
        set(part % num_people) for part in (dataset.split.train, dataset.split.val, dataset.split.test)
    )
    assert len(train) + len(val) + len(test) == num_people

    both.take(np.arange(20)).write_tsv(tmp_path / "held-out.tsv")
    later = prepared(replace(given, held_out=str(tmp_path / "held-out.tsv")))
    assert later.split.test.tolist() == list(range(20))
    assert min(np.concatenate([later.split.train, later.split.val]) % num_people) == 20


def test_another_trait_of_the_table_that_is_the_trait_ends_the_command(run, files):
    table = pd.read_csv(files / "phenotypes.tsv", sep="\t")
    noise = np.random.default_rng(1).normal(size=len(table))
    edit(files, trait_cm=table["trait"] * 2.54, again=table["trait"] + 0.1 * noise, age=noise)
    words = ["--phenotypes", files / "phenotypes.tsv", "--covariates", files / "phenotypes.tsv"]
    words += ["--genotypes", files / "cohort.bed", "--trait", "trait", "--out", files / "out"]
    for command in ("train", "rank"):
        ended = run(command, *words)
        assert ended.code == 2
        assert "phenotypes.tsv: covariate 'trait_cm' is the trait 'trait' itself" in ended.err
    edit(files, trait_cm=noise)
    ended = run("train", *words)
    assert ended.code == 2
    assert "covariate 'again' predicts the trait 'trait' nearly perfectly (R² 0.99" in ended.err
    assert "--set data.allow_leakage=true" in ended.err
    assert not (files / "out").exists()

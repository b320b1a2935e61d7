"""What a user means by a folder."""

import shutil

import pytest

from snpdeconv.errors import InputError
from snpdeconv.genetics.ingest import import_cohort
from snpdeconv.launch.inputs import find_all_genotypes, find_inputs


@pytest.fixture
def folder(cohort, tmp_path):
    """A copy of the simulated cohort to spoil."""
    for path in cohort.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


def test_a_simulated_folder_is_all_that_is_needed(folder):
    for data in (folder, folder / "cohort.bed"):
        inputs = find_inputs(data)
        assert (inputs.genotypes, inputs.phenotypes) == (
            str(folder / "cohort.bed"), str(folder / "phenotypes.tsv"),
        )  # fmt: skip
        assert (inputs.trait, inputs.covariates) == ("trait", None)


def test_a_table_of_covariates_beside_is_taken(folder):
    shutil.copy(folder / "phenotypes.tsv", folder / "covariates.tsv")
    assert find_inputs(folder).covariates == str(folder / "covariates.tsv")


def test_a_table_of_blocks_is_no_cohort(folder):
    (folder / "blocks.bed").write_text("1\t0\t1000\n")
    assert find_inputs(folder).genotypes.endswith("cohort.bed")


def test_an_imported_cohort_is_one(folder):
    import_cohort(folder / "cohort.bed", folder / "store")
    assert find_inputs(folder / "store", phenotypes=folder / "phenotypes.tsv").genotypes.endswith("store")
    assert [path.name for path in find_all_genotypes(folder)] == ["cohort.bed", "store"]


def spoil_two_cohorts(folder):
    for suffix in (".bed", ".bim", ".fam"):
        shutil.copy(folder / f"cohort{suffix}", folder / f"other{suffix}")


def spoil_columns(folder):
    lines = (folder / "phenotypes.tsv").read_text().replace("trait", "height").splitlines()
    more = [line + ("\tweight" if place == 0 else "\t1") for place, line in enumerate(lines)]
    (folder / "phenotypes.tsv").write_text("\n".join(more) + "\n")


def spoil_table(folder):
    (folder / "phenotypes.tsv").unlink()


def spoil_cohort(folder):
    (folder / "cohort.bed").unlink()


def spoil_companion(folder):
    (folder / "cohort.fam").unlink()


@pytest.mark.parametrize(
    "spoil, told",
    [
        (spoil_two_cohorts, r"holds several cohorts \(cohort.bed, other.bed\); name one of them"),
        (spoil_columns, r"which column is the trait\? It has height, weight; name it with --trait"),
        (spoil_table, r"there is no phenotype table \(phenotypes.tsv\) beside cohort.bed"),
        (spoil_cohort, r"holds no cohort"),
        (spoil_companion, r"cohort.fam"),
    ],
)
def test_what_is_not_clear_is_asked(folder, spoil, told):
    spoil(folder)
    with pytest.raises(InputError, match=told):
        find_inputs(folder)


def test_a_column_that_is_not_there(folder):
    with pytest.raises(InputError, match=r"there is no column 'hight' for --trait; did you mean 'trait'"):
        find_inputs(folder, trait="hight")

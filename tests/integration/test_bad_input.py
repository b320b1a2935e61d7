"""Wrong files, tables and settings end with one clear line and exit code 2; nothing is half-written."""

import shutil

import pandas as pd
import pytest
from command_line import train_words


@pytest.fixture
def files(cohort, tmp_path):
    """A copy of the cohort that a test may break."""
    return shutil.copytree(cohort, tmp_path / "files")


def train(run, files, *more, trait="trait"):
    return run(*train_words(files, files / "run", "--trait", trait, *more))


def assert_refused(ended, *parts):
    assert ended.code == 2, ended.err
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last
    assert "Traceback" not in ended.err


def edit_phenotypes(files, change):
    table = pd.read_csv(files / "phenotypes.tsv", sep="\t", dtype=str)
    change(table).to_csv(files / "phenotypes.tsv", sep="\t", index=False)


def with_column(**columns):
    return lambda table: table.assign(**columns)


def test_a_truncated_bed(run, files):
    content = (files / "cohort.bed").read_bytes()
    (files / "cohort.bed").write_bytes(content[:-10])
    assert_refused(train(run, files), "cohort.bed", "bytes")
    assert not (files / "run").exists()


def test_a_bim_with_a_line_too_few(run, files):
    lines = (files / "cohort.bim").read_text().splitlines()
    (files / "cohort.bim").write_text("\n".join(lines[:-1]) + "\n")
    assert_refused(train(run, files), "cohort.b")


def test_a_vcf_without_samples(run, files):
    path = files / "sites.vcf"
    path.write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n1\t10\t.\tA\tG\t.\t.\t.\n"
    )
    assert_refused(
        run("train", "--genotypes", path, "--phenotypes", files / "phenotypes.tsv", "--trait", "trait"),
        "sites.vcf",
    )


def test_a_vcf_with_a_broken_record(run, files):
    path = files / "broken.vcf"
    path.write_text(
        '##fileformat=VCFv4.2\n##contig=<ID=1>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="GT">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ta\tb\n"
        "1\t10\t.\tA\tG\t.\t.\t.\tGT\t0/1\t0/0\n1\t20\t.\tA\tG\n"
    )
    assert_refused(run("import", path, files / "store"), "broken.vcf")
    assert not (files / "store").exists()


def test_duplicated_sample_ids(run, files):
    lines = (files / "cohort.fam").read_text().splitlines()
    lines[1] = lines[0]
    (files / "cohort.fam").write_text("\n".join(lines) + "\n")
    assert_refused(train(run, files), "cohort.fam", "twice")


def test_no_sample_id_in_common(run, files):
    edit_phenotypes(files, lambda t: t.assign(**{"#FID": "x", "IID": [f"other{i}" for i in range(len(t))]}))
    assert_refused(train(run, files), "phenotypes.tsv", "no sample ID in common", "is the ID column right?")
    assert not (files / "run").exists()


def test_a_constant_trait(run, files):
    edit_phenotypes(files, with_column(trait="1.5"))
    assert_refused(train(run, files), "must vary")


def test_a_class_of_two_people(run, files):
    edit_phenotypes(files, lambda t: t.assign(trait=["rare"] * 2 + ["a", "b"] * ((len(t) - 2) // 2)))
    assert_refused(train(run, files), "class 'rare'", "has 2 people", "merge")


def test_text_in_a_numeric_trait(run, files):
    edit_phenotypes(files, lambda t: t.assign(trait=["tall", *t["trait"][1:]]))
    assert_refused(train(run, files), "mixes numbers and text", "line 2 says 'tall'")


def test_a_column_that_is_not_there(run, files):
    assert_refused(train(run, files, trait="trai"), "no column 'trai'", "did you mean 'trait'?")


def test_all_variants_missing(run, files):
    size = (files / "cohort.bed").stat().st_size
    (files / "cohort.bed").write_bytes(b"\x6c\x1b\x01" + b"\x55" * (size - 3))
    assert_refused(train(run, files), "missing")
    assert not (files / "run").exists()


def test_covariates_with_missing_values(run, files):
    table = pd.read_csv(files / "phenotypes.tsv", sep="\t", dtype=str)[["#FID", "IID"]]
    table["age"] = "NA"
    table.to_csv(files / "covariates.tsv", sep="\t", index=False)
    assert_refused(
        train(run, files, "--covariates", files / "covariates.tsv"),
        "covariates.tsv",
        "nobody of 240 people has all covariates",
    )


def test_missing_files(run, files):
    assert_refused(train(run, files, "--genotypes", files / "none.bed"), "none.bed")
    assert_refused(train(run, files, "--phenotypes", files / "none.tsv"), "none.tsv", "no such file")


def test_unknown_preset_key_and_value(run, files):
    assert_refused(train(run, files, "--preset", "smal_cpu"), "did you mean 'small_cpu'?")
    assert_refused(train(run, files, "--set", "training.epoch=3"), "did you mean 'training.epochs'?")
    assert_refused(train(run, files, "--set", "training.epochs=none"), "training.epochs")


def test_a_model_name_that_cannot_be_one(run, files):
    assert_refused(train(run, files, "--name", "a/b"), "'a/b' cannot name a model")


def test_an_out_that_is_a_file(run, files):
    (files / "run").write_text("a file")
    assert_refused(train(run, files), "is a file")


def test_a_folder_that_cannot_be_written(run, files, monkeypatch):
    # Root may write everywhere but into /proc.
    done = train(run, files, "--out", "/proc/run")
    assert_refused(done, "/proc/run", "cannot be written")
    monkeypatch.setenv("SNPDECONV_HOME", "/proc/home")
    assert_refused(train(run, files), "/proc/home")


def test_models_that_are_not_there(run, files, tmp_path):
    words = ["predict", "--genotypes", files / "cohort.bed", "--out", tmp_path / "p.tsv"]
    assert_refused(run(*words, "--model", "nothing@champion"), "no model is registered")
    assert_refused(run("rank", "--run", "0" * 32, "--out", tmp_path / "r"), "no run")
    assert_refused(run("rank", "--out", tmp_path / "r"), "--run or --model")
    assert_refused(
        run("rank", "--model", "m", "--method", "marginl", "--out", tmp_path / "r"), "did you mean 'marginal'"
    )
    assert not (tmp_path / "p.tsv").exists()


def test_a_cohort_with_too_little_overlap(run, files, tmp_path):
    assert train(run, files, "--name", "m").code == 0
    bim = pd.read_csv(files / "cohort.bim", sep=r"\s+", header=None, dtype=str)
    bim[3] = (bim[3].astype(int) + 7).astype(str)
    bim.to_csv(files / "cohort.bim", sep="\t", header=False, index=False)
    assert_refused(
        run("predict", "--model", "m", "--genotypes", files / "cohort.bed", "--out", tmp_path / "p.tsv"),
        "0 of",
    )
    assert not (tmp_path / "p.tsv").exists()


def test_a_tracking_server_that_is_down_loses_nothing(run, files, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = train(run, files, "--set", "tracking.flush_timeout_s=1")
    assert done.code == 0, done.err
    assert "snpdeconv sync" in done.err
    assert (files / "run" / "ranking.tsv").exists()

"""Tables join by ID and never by order, and each mistake in them ends in one clear line."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import parse_record
from snpdeconv.genetics.phenotypes import CovariateEncoder, load_groups, load_trait, read_covariates
from snpdeconv.genetics.samples import Samples, read_table

ids = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters='",#'), min_size=1)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path):
    """Writes phenotypes.tsv from its text."""
    return lambda text: write(tmp_path / "phenotypes.tsv", text)


def cohort(num_people: int) -> Samples:
    return Samples.build([f"S{i}" for i in range(num_people)])


def column_of(values, name="trait") -> str:
    return f"IID\t{name}\n" + "".join(f"S{i}\t{value}\n" for i, value in enumerate(values))


class TestReadTable:
    @pytest.mark.parametrize(
        "text",
        [
            "#FID\tIID\ttrait\nF1\tS1\t1.5\nF2\tS2\t\n",
            "FID IID trait\nF1   S1 1.5\n  F2 S2 ''\n".replace("''", '""'),
            '"FID","IID","trait"\r\n"F1","S1","1.5"\r\n"F2", "S2",\r\n',
            "\ufeff## a note\n\nFID\tIID\ttrait\n\nF1\tS1\t 1.5 \n\t\t\nF2\tS2\t\n\n",
        ],
        ids=["tabs", "spaces", "commas", "notes"],
    )
    def test_delimiters_headers_and_blanks(self, table, text):
        frame = read_table(table(text))
        assert frame.columns.tolist() == ["FID", "IID", "trait"]
        assert frame.to_numpy().tolist() == [["F1", "S1", "1.5"], ["F2", "S2", ""]]

    def test_iid_alone_and_line_numbers(self, table):
        frame = read_table(table("\n#IID\tage\nS1\t4\n\nS2\t5\n"))
        assert frame.columns.tolist() == ["IID", "age"]
        assert frame.index.tolist() == [3, 5]

    def test_one_iid_in_two_families(self, table):
        assert len(read_table(table("FID IID\nF1 1\nF2 1\n"))) == 2

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the file is empty"),
            ("\n \n## note\n", "the file is empty"),
            ("#FID\tIID\ttrait\n", "there is a header and no row"),
            ("sample trait\nS1 2\n", "no column IID .the header has 'sample', 'trait'.; name the column"),
            ("IID\tage\tage\nS1\t1\t2\n", "column 'age' stands 2 times"),
            ("IID\tage\t\nS1\t1\t2\n", "a column has no name"),
            ("IID\tage\nS1\t1\nS2\n", "line 3 has 1 fields, the header 2; write"),
            ("IID age\nS1 1\n\nS2 1 2\n", "line 4 has 3 fields, the header 2"),
            ("IID\tage\nS1\t1\n\t2\n", "line 3 has no sample ID"),
            ("IID\tage\nS1\t1\nS2\t2\nS1\t3\n", "sample 'S1' stands on lines 2 and 4"),
            ("FID IID age\nF 1 1\nF 1 3\n", "sample 'F 1' stands on lines 2 and 3"),
            ('IID,age\nS1,"1\nS2,2\n', "line 2 cannot be split into fields"),
        ],
    )
    def test_mistakes_name_file_and_line(self, table, text, message):
        path = table(text)
        with pytest.raises(InputError, match=message) as caught:
            read_table(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert caught.value.hint
        assert "\n" not in str(caught.value)

    def test_not_utf8_missing_and_a_folder(self, tmp_path):
        path = tmp_path / "phenotypes.csv"
        path.write_bytes("IID,age\nS1,1\nJos\xe9,2\n".encode("latin-1"))
        with pytest.raises(InputError, match="line 3 is not UTF-8"):
            read_table(path)
        with pytest.raises(InputError, match=r"absent.tsv: no such file"):
            read_table(tmp_path / "absent.tsv")
        with pytest.raises(InputError, match="is a folder"):
            read_table(tmp_path)

    @same_folder
    @given(st.binary(max_size=60) | st.text('IDF\t ,"\n\r1.#x', max_size=40).map(str.encode))
    def test_any_bytes_are_read_or_refused(self, tmp_path, content):
        path = tmp_path / "any.tsv"
        path.write_bytes(content)
        try:
            frame = read_table(path)
        except InputError as error:
            assert error.where == path  # noqa: PT017
        else:
            assert len(frame)
            assert not frame.duplicated([c for c in ("FID", "IID") if c in frame]).any()

    @same_folder
    @given(st.lists(st.tuples(ids, ids), min_size=1, unique=True), st.sampled_from(["\t", " ", ","]))
    def test_what_was_written_is_read(self, tmp_path, pairs, mark):
        rows = [("FID", "IID", "x"), *((fid, iid, str(i)) for i, (fid, iid) in enumerate(pairs))]
        # White space inside an ID cannot be told from the delimiter or from padding.
        rows = [row for row in rows if all(part.split() == [part] for part in row)]
        path = write(tmp_path / "any.tsv", "".join(mark.join(row) + "\n" for row in rows))
        if len(rows) > 1:
            assert [tuple(row) for row in read_table(path).to_numpy()] == rows[1:]


class TestJoining:
    def test_by_pair_in_the_cohorts_order(self, table):
        samples = Samples.build(["1", "1", "2", "9"], fid=["A", "B", "A", "Z"])
        path = table("#FID IID y\nA 2 20\nX 9 99\nB 1 11\nA 1 10\n")
        trait = load_trait(path, column="y", samples=samples, trait_type="quantitative")
        assert trait.rows.tolist() == [0, 1, 2]
        assert trait.values.tolist() == [10.0, 11.0, 20.0]
        assert trait.report == {
            "in_table": 4, "in_cohort": 4, "table_not_in_cohort": 1, "cohort_not_in_table": 1,
            "missing_trait": 0, "used": 3,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("header", "prefix"), [("IID", ""), ("FID IID", "0 "), ("FID IID", "other")], ids=str
    )
    def test_by_iid_where_families_say_nothing(self, table, header, prefix, caplog):
        samples = Samples.build(["a", "b", "c"], fid=["F1", "F2", "F3"])
        rows = "".join(f"{prefix + ' ' if prefix.strip() == 'other' else prefix}{i} {v}\n" for i, v in
                       [("c", 3.5), ("a", 1.5), ("b", 2.5)])  # fmt: skip
        trait = load_trait(table(f"{header} y\n{rows}"), column="y", samples=samples)
        assert trait.values.tolist() == [1.5, 2.5, 3.5]
        assert ("joined by IID alone" in caplog.text) == (header == "FID IID")

    def test_a_vcf_has_no_families_even_if_one_person_of_the_table_has_none(self, table):
        path = table("FID IID y\n0 a 1.5\nF2 b 2.5\nF3 c 3.5\n")
        assert len(load_trait(path, column="y", samples=Samples.build(["a", "b", "c"])).rows) == 3

    def test_few_ids_in_common_are_told(self, table, caplog):
        path = table(column_of(range(10)))
        load_trait(path, column="trait", samples=cohort(100))  # a table of a part of the cohort
        assert "IDs of the smaller" not in caplog.text
        people = Samples.build([f"S{i}" for i in range(4)] + [f"0_S{i}" for i in range(4, 20)])
        load_trait(path, column="trait", samples=people, cohort="cohort.bed", min_class_size=1)
        assert "only 4 of 10 IDs of the smaller" in caplog.text
        assert "cohort.bed" in caplog.text

    def test_no_id_in_common_shows_the_first_of_each(self, table):
        path = table("IID y\nS1 1\nS2 2\n")
        with pytest.raises(InputError) as caught:
            load_trait(path, column="y", samples=Samples.build(["1", "2"]), cohort="cohort.fam")
        assert str(caught.value) == (
            f"{path}: no sample ID in common with cohort.fam (first: 'S1' / '1'); is the ID column right?"
        )

    def test_ambiguous_iids_are_refused(self, table):
        samples = Samples.build(["1", "1", "2"], fid=["A", "B", "A"])
        with pytest.raises(InputError, match="'1' stands 2 times in the cohort"):
            load_trait(table("IID y\n1 5\n2 6\n"), column="y", samples=samples)
        with pytest.raises(InputError, match=r"'2' stands 2 times in .*phenotypes.tsv"):
            load_trait(table("FID IID y\nX 2 5\nY 2 6\n"), column="y", samples=samples)

    @given(st.permutations(range(12)))
    @same_folder
    def test_the_order_of_the_table_does_not_matter(self, tmp_path, order):
        lines = [f"S{i}\t{i / 7}\n" for i in order]
        path = write(tmp_path / "shuffled.tsv", "IID\ty\n" + "".join(lines))
        trait = load_trait(path, column="y", samples=cohort(12))
        np.testing.assert_array_equal(trait.values, np.arange(12) / 7)


class TestTrait:
    @pytest.mark.parametrize(
        ("values", "kind", "classes", "first"),
        [
            ([2, 1] * 5, "binary", ("1", "2"), 1),
            (["1.0", "0"] * 5, "binary", ("0", "1"), 1),
            ([0.5, 1.5, 2.5] * 5, "quantitative", (), 0.5),
            (["1e-3", "-.5", "+7."] * 5, "quantitative", (), 1e-3),
            (["case", "control"] * 5, "binary", ("control", "case"), 1),
            (["Yes", "No"] * 5, "binary", ("No", "Yes"), 1),
            (["blue", "red"] * 5, "binary", ("blue", "red"), 0),
            (["b", "a", "c"] * 5, "multiclass", ("a", "b", "c"), 1),
            (["1_0", "2_0"] * 5, "binary", ("1_0", "2_0"), 0),
        ],
    )
    def test_the_kind_is_inferred(self, table, values, kind, classes, first):
        trait = load_trait(table(column_of(values)), column="trait", samples=cohort(len(values)))
        assert (trait.kind, trait.classes) == (kind, classes)
        assert trait.values[0] == first
        assert trait.values.dtype == (np.float64 if kind == "quantitative" else np.int64)

    def test_codes_of_classes_when_asked_for(self, table, caplog):
        path = table(column_of([10, 2, 2.5] * 5))
        trait = load_trait(path, column="trait", samples=cohort(15), trait_type="multiclass")
        assert trait.classes == ("2", "2.5", "10")
        assert trait.values[:3].tolist() == [2, 0, 1]
        path = table(column_of([1, 2, 3] * 5))
        assert load_trait(path, column="trait", samples=cohort(15)).kind == "quantitative"
        assert "trait_type=multiclass" in caplog.text

    def test_numbers_and_words_as_classes_when_asked_for(self, table):
        path = table(column_of(["1", "x"] * 5))
        trait = load_trait(path, column="trait", samples=cohort(10), trait_type="binary")
        assert trait.classes == ("1", "x")

    @pytest.mark.parametrize("word", ["NA", "NaN", "nan", ".", "", "n/a", "-9", "-9.0"])
    def test_missing_words(self, table, word):
        path = table(column_of([word, *[1.5, 2.5, 3.5] * 3]))
        trait = load_trait(path, column="trait", samples=cohort(10))
        assert trait.rows.tolist() == list(range(1, 10))
        assert (trait.report["missing_trait"], trait.report["used"]) == (1, 9)

    def test_minus_nine_is_missing_with_a_warning_unless_a_value_lies_below(self, table, caplog):
        plink = load_trait(table(column_of([1, 2, -9] * 5)), column="trait", samples=cohort(15))
        assert (plink.kind, plink.classes, plink.report["missing_trait"]) == ("binary", ("1", "2"), 5)
        assert "5 values of -9 are taken as missing" in caplog.text
        words = load_trait(table(column_of(["a", "b", -9] * 5)), column="trait", samples=cohort(15))
        assert words.classes == ("a", "b")
        cold = table(column_of([-12.5, 3.5, -9] * 5))
        assert -9.0 not in load_trait(cold, column="trait", samples=cohort(15)).values
        kept = load_trait(cold, column="trait", samples=cohort(15), missing_codes=())
        assert kept.report["missing_trait"] == 0
        assert -9.0 in kept.values

    @pytest.mark.parametrize("code", [-999, 99999, -99])
    def test_what_looks_like_a_code_is_refused_until_it_is_named(self, table, code):
        path = table(column_of([171.5, 160, 182.25, 155, code] * 3))
        with pytest.raises(
            InputError, match=rf"3 values of {code} look like a code.*missing_codes=-9,{code}"
        ):
            load_trait(path, column="trait", samples=cohort(15))
        named = load_trait(path, column="trait", samples=cohort(15), missing_codes=(-9, code))
        assert named.report["missing_trait"] == 3
        assert code in load_trait(path, column="trait", samples=cohort(15), missing_codes=(-9,)).values

    @pytest.mark.parametrize("factor", [1e300, 1e-300])
    def test_numbers_whose_squares_do_not_exist(self, table, factor):
        path = table(column_of([1.5 * factor, 2.5 * factor, 7 * factor] * 5))
        with pytest.raises(InputError, match=r"too large or too close.*other units"):
            load_trait(path, column="trait", samples=cohort(15))

    @pytest.mark.parametrize(
        "values, cause",
        [
            (["1,5", "2,25", "0,5"], "decimal commas"),
            (["12.5%", "3%", "7 %"], "percentages"),
            (["1.0D-3", "2.0d-3", "1D2"], "exponent D"),
            (["1,000", "12,500", "3,250"], "commas"),
            (["1,5", "2", "3"], "decimal commas"),
            (["<0.1", "0.5", "2"], "limit of detection"),
        ],
    )
    def test_numbers_of_other_programs_are_no_words(self, table, values, cause):
        path = table(column_of(values * 5))
        with pytest.raises(InputError, match=f"column 'trait' holds .*{cause}"):
            load_trait(path, column="trait", samples=cohort(15))

    @pytest.mark.parametrize(
        ("values", "trait_type", "message"),
        [
            ([1.5, 2.5, "tall"], "auto", r"mixes numbers and text \(line 4 says 'tall'\).*multiclass"),
            ([1.5, "2,5"], "quantitative", r"decimal commas \(line 3 says '2,5'\)"),
            (["a", "b"] * 5, "quantitative", r"column 'trait' is text \(line 2 says 'a'\)"),
            ([2.5] * 9, "auto", "'2.5' for all 9 people with a value; a trait must vary"),
            ([2.5, 2.5, "NA"], "quantitative", "'2.5' for all 2 people"),
            (["a"] * 9, "auto", "'a' for all 9 people"),
            (["a"] * 9 + ["b", "b"], "auto", "class 'b' of trait 'trait' has 2 people, fewer than 5; merge"),
            (["a"] * 9 + ["b"] * 3, "auto", "data.min_class_size=3"),
            (["a", "b"], "auto", r"has 1 person, fewer than 5 \(and 1 more such classes\)"),
            ([0, 1, 2] * 5, "binary", r"has 3 values \('0', '1', '2'\), not 2"),
            ([1.5, "inf", 3], "auto", r"not finite \(line 3 says 'inf'\)"),
            ([1.5, "1e999", 3], "quantitative", "not finite"),
            (["NA", "."], "auto", "missing for all 2 people shared with the cohort"),
        ],
    )
    def test_traits_that_cannot_be_learnt(self, table, values, trait_type, message):
        path = table(column_of(values))
        with pytest.raises(InputError, match=message) as caught:
            load_trait(path, column="trait", samples=cohort(len(values)), trait_type=trait_type)
        assert caught.value.where == path

    def test_a_wrong_column_answers_with_the_nearest(self, table):
        with pytest.raises(InputError, match="no column 'hieght'; did you mean 'height'"):
            load_trait(table(column_of([1, 2], "height")), column="hieght", samples=cohort(2))
        with pytest.raises(InputError, match="no column 'y'; it has ID columns only"):
            load_trait(table("IID\nS0\n"), column="y", samples=cohort(2))

    def test_a_wrong_kind_is_a_mistake_in_the_configuration(self, table):
        with pytest.raises(
            ConfigError, match=r"data\.trait_type: no trait type 'binarry'; did you mean 'binary'"
        ):
            load_trait(table(column_of([1, 2])), column="trait", samples=cohort(2), trait_type="binarry")

    def test_the_smallest_class_can_be_set(self, table):
        path = table(column_of(["a", "b", "a", "b"]))
        trait = load_trait(path, column="trait", samples=cohort(4), min_class_size=2)
        assert trait.values.tolist() == [0, 1, 0, 1]


COVARIATES = (
    "IID\tage\tsite\tsame\n"
    "S3\t50\tOslo\t7\nS2\t40\tBonn\t7\nS1\t30\tLima\t7\nS0\t20\tOslo\t7\nS9\tNA\tRome\t7\n"
)


class TestCovariates:
    def load(self, path, num_people=4, **options):
        return read_covariates(path, samples=cohort(num_people), **options).encoded(np.arange(num_people))

    def test_numbers_and_indicators_aligned_with_the_rows(self, table, caplog):
        covariates = read_covariates(table(COVARIATES), samples=cohort(10)).encoded(np.array([3, 0, 2, 1]))
        assert covariates.names == ("age", "site=Lima", "site=Oslo")
        assert covariates.values.tolist() == [[50, 0, 1], [20, 0, 1], [40, 0, 0], [30, 1, 0]]
        assert "'same' is the same for all" in caplog.text

    def test_scaled_on_the_training_people_alone(self, table):
        covariates = self.load(table(COVARIATES))
        scaled = covariates.standardise(np.array([0, 1, 3]))
        age = np.array([20.0, 30.0, 40.0, 50.0])
        train = age[[0, 1, 3]]
        np.testing.assert_allclose(scaled.values[:, 0], (age - train.mean()) / train.std())
        np.testing.assert_allclose(scaled.values[[0, 1, 3]].mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(scaled.values[[0, 1, 3]].std(axis=0), 1)

    def test_what_does_not_vary_in_training_is_left_out(self, table, caplog):
        scaled = self.load(table(COVARIATES)).standardise(np.array([0, 2, 3]))
        assert scaled.names == ("age", "site=Oslo")
        assert "'site=Lima' does not vary among the training people" in caplog.text

    def test_a_saved_encoder_reads_a_new_table_alike(self, table):
        scaled = self.load(table(COVARIATES)).standardise(np.arange(4))
        kept = json.dumps(asdict(scaled.encoder)).encode()
        encoder = parse_record(kept, CovariateEncoder, where="", hint="")
        assert encoder == scaled.encoder
        new = table("IID site more age\nN1 Lima x 30\nN0 Oslo y 20\n")
        values = read_covariates(new, samples=Samples.build(["N0", "N1"])).encoded_by(
            encoder, np.array([1, 0])
        )
        np.testing.assert_array_equal(values, scaled.values[[1, 0]])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("IID site age\nS0 Rome 20\n", r"'site' has a value that training .*\(line 2 says 'Rome'\)"),
            ("IID site age\nS0 Oslo old\n", r"'age' is a number to this model.*line 2 says 'old'"),
            ("IID age\nS0 20\n", "no column 'site'"),
            ("IID site age\nS0 Oslo NA\n", r"'age' is missing for 1 of 1 people \(first: 'S0'\)"),
        ],
    )
    def test_new_tables_that_do_not_fit(self, table, text, message):
        encoder = self.load(table(COVARIATES)).encoder
        with pytest.raises(InputError, match=message):
            read_covariates(table(text), samples=cohort(1)).encoded_by(encoder, np.array([0]))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                COVARIATES.replace("40", "NaN"),
                r"'age' is missing for 1 of 4 people \(first: 'S2'\); fill it in",
            ),
            (COVARIATES.replace("40", "-9"), "'age' is missing for 1 of 4"),
            (COVARIATES.replace("40", "forty"), r"mixes numbers and text \(line 3 says 'forty'\)"),
            (COVARIATES.replace("40", "inf"), "not finite"),
            (COVARIATES.replace("S2", "X2"), r"1 of 4 people have no row \(first: 'S2'\)"),
            ("IID\nS0\nS1\nS2\nS3\n", "there is no covariate"),
        ],
    )
    def test_incomplete_tables(self, table, text, message):
        with pytest.raises(InputError, match=message):
            self.load(table(text))

    def test_a_column_of_names_is_no_covariate(self, table):
        path = table(column_of([f"name{i}" for i in range(101)]))
        with pytest.raises(InputError, match="'trait' has 101 different texts among 101 people"):
            self.load(path, 101)

    def test_the_trait_can_be_kept_out(self, table):
        assert self.load(table(COVARIATES), exclude=("age", "same")).names == ("site=Lima", "site=Oslo")

    def test_nothing_that_varies_leaves_no_column(self, table):
        covariates = self.load(table(COVARIATES), exclude=("age", "site"))
        assert covariates.values.shape == (4, 0)
        assert covariates.standardise(np.array([0, 1])).values.shape == (4, 0)
        encoded = read_covariates(table(COVARIATES), samples=cohort(4)).encoded_by(
            covariates.encoder, np.arange(4)
        )
        assert encoded.shape == (4, 0)


class TestGroups:
    def test_people_without_a_group_stand_alone(self, table):
        path = table("IID\tfamily\nS3\tA\nS2\tNA\nS1\tB\nS0\tA\nS4\t\nS5\tB\n")
        groups = load_groups(path, column="family", samples=cohort(6), rows=np.arange(6))
        assert groups.tolist() == [0, 1, 2, 0, 3, 1]

    def test_family_ids_of_the_table_or_of_the_cohort(self, table):
        samples = Samples.build(["a", "b", "c", "d"], fid=["F", "F", "0", "0"])
        by_cohort = load_groups(
            table("IID y\na 1\nb 1\nc 1\n"), column="FID", samples=samples, rows=np.arange(4)
        )
        assert by_cohort.tolist() == [0, 0, 1, 2]
        vcf = Samples.build(["a", "b", "c"])
        path = table("FID IID\nG c\nG a\nH b\n")
        assert load_groups(path, column="FID", samples=vcf, rows=np.arange(3)).tolist() == [0, 1, 0]

    def test_groups_of_nobody_are_told(self, table, caplog):
        path = table(column_of(["p", "q", "r"], "household"))
        groups = load_groups(path, column="household", samples=cohort(3), rows=np.arange(3))
        assert groups.tolist() == [0, 1, 2]
        assert "groups nobody" in caplog.text

    def test_an_unknown_column(self, table):
        with pytest.raises(InputError, match="did you mean 'family'"):
            load_groups(
                table(column_of([1, 2], "family")), column="famly", samples=cohort(2), rows=np.arange(2)
            )


def test_what_became_of_the_people_is_logged(table, caplog):
    caplog.set_level(logging.INFO)
    load_trait(table(column_of([0.5, 1.5, 2.5, "NA"])), column="trait", samples=cohort(5))
    assert "3 of the cohort's 5 people have it (1 not in the table, 1 without a value)\n" in caplog.text


@pytest.mark.parametrize(
    "values, told",
    [
        (["1", "2", "2", "1", "2"] * 3, "trait 't': '2' is a case (9 people), '1' a control (6)"),
        (["case", "control", "case"] * 5, "trait 't': 'case' is a case (10 people), 'control' a control (5)"),
        (["a", "b", "c"] * 5, "trait 't': people of 3 classes: 'a' 5, 'b' 5, 'c' 5"),
    ],
)
def test_the_log_says_which_code_is_a_case_and_how_many_there_are(tmp_path, caplog, values, told):
    iid = [f"S{i}" for i in range(len(values))]
    rows = "".join(f"{name}\t{value}\n" for name, value in zip(iid, values, strict=True))
    (tmp_path / "t.tsv").write_text("IID\tt\n" + rows)
    with caplog.at_level(logging.INFO):
        load_trait(tmp_path / "t.tsv", column="t", samples=Samples.build(iid))
    assert told in caplog.text

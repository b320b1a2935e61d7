"""Filters count what they leave out, each once, and say so when nothing stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from snpdeconv.errors import InputError
from snpdeconv.genetics import qc
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.qc import filter_samples, filter_variants

codes_of = st.tuples(st.integers(1, 12), st.integers(1, 23)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)


class TestSamples:
    @given(codes_of, st.floats(0, 1), st.data())
    def test_the_missing_rate_is_that_of_the_codes(self, codes, missing_max, data):
        num_samples = len(codes)
        rows = np.array(data.draw(st.permutations(range(num_samples))))
        rows = rows[: data.draw(st.integers(1, num_samples))]
        for_all = (codes[rows] == 3).all(axis=0)
        rate = (codes[rows][:, ~for_all] == 3).mean(axis=1) if not for_all.all() else np.ones(len(rows))
        genotypes = PackedGenotypes.from_codes(codes)
        if (rate > missing_max).all():
            with pytest.raises(InputError, match=f"none of {len(rows)} samples"):
                filter_samples(genotypes, rows, missing_max=missing_max)
            return
        kept = filter_samples(genotypes, rows, missing_max=missing_max)
        np.testing.assert_allclose(kept.missing_rate, rate)
        np.testing.assert_array_equal(kept.rows, rows[rate <= missing_max])
        assert kept.report["too_missing"] + kept.report["kept"] == kept.report["samples"] == len(rows)

    def test_many_samples_go_through_in_pieces(self, monkeypatch):
        monkeypatch.setattr(qc, "_WORK_BYTES", 8)
        codes = np.random.default_rng(0).integers(0, 4, (50, 13)).astype(np.uint8)
        kept = filter_samples(PackedGenotypes.from_codes(codes), np.arange(50), missing_max=0.25)
        np.testing.assert_array_equal(kept.rows, np.flatnonzero((codes == 3).mean(axis=1) <= 0.25))

    def test_variants_that_nobody_has_are_held_against_nobody(self, monkeypatch):
        monkeypatch.setattr(qc, "_WORK_BYTES", 8)
        codes = np.random.default_rng(0).integers(0, 3, (20, 50)).astype(np.uint8)
        codes[:, 3::8] = 3  # 12 % of the variants
        codes[4, :20] = 3
        genotypes = PackedGenotypes.from_codes(codes)
        kept = filter_samples(genotypes, np.arange(20), missing_max=0.1)
        assert kept.rows.tolist() == [n for n in range(20) if n != 4]
        assert kept.missing_rate[[0, 4]].tolist() == [0, 17 / 44]

    def test_nobody_left_names_the_setting(self):
        genotypes = PackedGenotypes.from_codes(np.array([[3, 3, 0], [3, 0, 3], [3, 3, 3]], dtype=np.uint8))
        with pytest.raises(InputError) as caught:
            filter_samples(genotypes, np.arange(3), missing_max=0.4, cohort="cohort.bed")
        assert str(caught.value) == (
            "cohort.bed: none of 3 samples has at most 0.4 of its genotypes missing (the best has 0.5); "
            "2 of 3 variants are missing for over half of the samples (of another array, or imputed badly): "
            "leave them out first, e.g. with `plink2 --geno 0.5`; or raise it with --set "
            "data.sample_missing_max=..."
        )


def counts_of(*columns):
    return np.array(columns, dtype=np.int64).T


class TestVariants:
    COUNTS = counts_of(
        [0, 0, 0, 20],  # all missing
        [10, 2, 0, 8],  # missing too often
        [20, 0, 0, 0],  # only one allele
        [0, 0, 19, 1],  # only the other
        [19, 1, 0, 0],  # rare
        [0, 1, 19, 0],  # the other allele rare
        [18, 2, 0, 0],  # MAF .05, just enough
        [5, 10, 3, 2],
    )

    def test_each_reason_is_counted_once(self):
        kept = filter_variants(self.COUNTS, maf_min=0.05, missing_max=0.1)
        assert np.flatnonzero(kept.keep).tolist() == [6, 7]
        assert kept.report == {
            "variants": 8, "all_missing": 1, "too_missing": 1, "monomorphic": 2, "low_maf": 2, "kept": 2,
        }  # fmt: skip
        np.testing.assert_allclose(
            kept.frequency, [np.nan, 1 / 12, 0, 1, 1 / 40, 39 / 40, 0.05, 16 / 36], equal_nan=True
        )

    def test_what_does_not_vary_goes_at_any_threshold(self):
        kept = filter_variants(self.COUNTS, maf_min=0.0, missing_max=1.0)
        assert np.flatnonzero(kept.keep).tolist() == [1, 4, 5, 6, 7]
        assert kept.report["all_missing"] == 1

    def test_it_is_fitted_on_the_training_samples(self):
        codes = np.array([[0, 1], [0, 1], [2, 0], [2, 3]], dtype=np.uint8)
        genotypes = PackedGenotypes.from_codes(codes)
        kept = filter_variants(genotypes.counts(rows=np.array([0, 1])), maf_min=0.1, missing_max=0.1)
        assert kept.keep.tolist() == [False, True]
        assert kept.frequency.tolist() == [0.0, 0.5]

    @pytest.mark.parametrize("counts", [COUNTS[:, :1], COUNTS[:, :6], COUNTS[:, :0]])
    def test_nothing_left_shows_the_counts_and_the_settings(self, counts):
        with pytest.raises(InputError, match=r"all missing.*; loosen data.maf_min=0.05 or") as caught:
            filter_variants(counts, maf_min=0.05, missing_max=0.1, cohort="cohort.bed")
        assert caught.value.where == "cohort.bed"

    @given(codes_of, st.floats(0, 0.49), st.floats(0, 1))
    def test_reasons_add_up_and_what_stays_passes(self, codes, maf_min, missing_max):
        genotypes = PackedGenotypes.from_codes(codes)
        try:
            kept = filter_variants(genotypes.counts(), maf_min=maf_min, missing_max=missing_max)
        except InputError:
            return
        assert sum(kept.report.values()) == 2 * codes.shape[1]
        for column in np.flatnonzero(kept.keep):
            called = codes[:, column][codes[:, column] != 3]
            frequency = called.mean() / 2
            assert kept.frequency[column] == pytest.approx(frequency)
            assert 0 < min(frequency, 1 - frequency) >= maf_min - 1e-12
            assert 1 - len(called) / len(codes) <= missing_max + 1e-12


@pytest.mark.parametrize(
    ("bad", "cause"), [("variants", "2 of 10 variants are missing"), ("samples", "lies with the samples")]
)
def test_the_cause_of_much_missingness_is_named(caplog, bad, cause):
    codes = np.random.default_rng(1).integers(0, 3, (40, 10)).astype(np.uint8)
    if bad == "variants":
        codes[:36, 3], codes[2:38, 7] = 3, 3
    else:
        codes[:8, ::2] = 3
    with caplog.at_level("WARNING"):
        filter_samples(PackedGenotypes.from_codes(codes), np.arange(40), missing_max=0.15)
    assert cause in caplog.text


def test_a_frequency_of_the_limit_stays_whichever_allele_is_counted():
    for copies, limit in ((20, 0.1), (40, 0.2), (60, 0.3)):
        one = np.array([[100 - copies], [copies], [0], [0]])
        kept = [
            filter_variants(np.array([c]).reshape(4, 1), maf_min=limit, missing_max=0.1).report["kept"]
            for c in (one, one[[2, 1, 0, 3]])
        ]
        assert kept == [1, 1]

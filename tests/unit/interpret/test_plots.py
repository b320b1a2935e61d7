"""Figures: drawn for the shapes that cohorts have, nothing clipped, nothing on top of another thing."""

import contextlib
import itertools
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.image import imread

from snpdeconv.interpret import plots
from snpdeconv.interpret.plots import style
from snpdeconv.interpret.plots.genome import GenomeAxis, drawn_sets, label_centres, shaded_blocks


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn in a test."""
    figures = []
    original = style.figure_file

    @contextlib.contextmanager
    def recording(path, **size):
        with original(path, **size) as figure:
            figures.append(figure)
            yield figure

    monkeypatch.setattr(style, "figure_file", recording)
    return figures


def assert_well_laid_out(figure):
    """Everything drawn lies inside the picture, and legends cover no plotting area."""
    width, height = figure.get_size_inches()
    drawn = figure.get_tightbbox()
    assert (drawn.x0 >= 0, drawn.y0 >= 0, drawn.x1 <= width, drawn.y1 <= height) == (True,) * 4, drawn
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)


def ranking_table(*, chromosomes, num_variants, seed=0, ids="rs{}"):
    rng = np.random.default_rng(seed)
    chrom = np.sort(rng.integers(0, len(chromosomes), num_variants))
    pos = rng.integers(1, 50_000_000, num_variants)
    frame = pd.DataFrame(
        {
            "variant_id": [ids.format(1000 + 7 * v) for v in range(num_variants)],
            "chrom": [chromosomes[c] for c in chrom],
            "pos": pos,
            "block": [f"{chromosomes[c]}:{p // 100_000}" for c, p in zip(chrom, pos, strict=True)],
            "marginal": rng.exponential(0.43, num_variants),
            "attention": rng.dirichlet(np.ones(num_variants)),
        }
    )
    frame["score"] = frame["marginal"]
    frame = frame.sort_values("score", ascending=False, ignore_index=True)
    frame.insert(0, "rank", np.arange(1, num_variants + 1))
    return frame


@pytest.mark.parametrize(
    ("chromosomes", "num_variants", "ids"),
    [
        (["6"], 2000, "rs{}"),
        ([*map(str, range(1, 23)), "X"], 20_000, "rs{}"),
        (["1", "2"], 400, "1:{}:ACGTACGTACGTACGT:A"),
        (["MT"], 3, "rs{}"),
        (["1"], 1, "rs{}"),
    ],
)
def test_association_plot(tmp_path, drawn, chromosomes, num_variants, ids):
    ranking = ranking_table(chromosomes=chromosomes, num_variants=num_variants, ids=ids)
    plots.association_plot(
        ranking,
        path=tmp_path / "plots" / "association.png",
        method="integrated_gradients",
        trait="cost in $ or $",
        causal=ranking["variant_id"].iloc[[0, -1]],
    )
    assert imread(tmp_path / "plots" / "association.png").shape[:2] == (960, 1800)
    (figure,) = drawn
    assert_well_laid_out(figure)
    upper, lower = figure.axes
    labels = lower.texts
    assert len(labels) == min(5, num_variants)
    assert {text.get_text() for text in labels} == {
        style.shortened(name) for name in ranking["variant_id"].head(5)
    }
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert upper.get_xlim() == lower.get_xlim()
    num_points = sum(len(points.get_offsets()) for points in upper.collections)
    assert num_points >= num_variants + len(labels) + min(2, num_variants)
    if len(chromosomes) > 20:
        shown = [tick.get_text() for tick in lower.get_xticklabels()]
        assert shown == chromosomes


def test_the_title_counts_the_snps_past_bonferroni(tmp_path, drawn):
    ranking = ranking_table(chromosomes=["1"], num_variants=100)
    ranking["marginal"] = 0.0
    ranking.loc[[3, 4], "marginal"] = [3.2, 3.4]  # The line is at 3.3.
    plots.association_plot(ranking, path=tmp_path / "a.png", method="marginal", trait="height")
    assert (
        drawn[0].axes[0].get_title("left") == "Association of each SNP with height: 1 of 100 pass Bonferroni"
    )
    assert "marginal association" in drawn[0].axes[1].get_title("left")


def with_sets(ranking, members_of, *, seed=1):
    """Adds pip and credible_set: rows (by rank - 1) of each set, by the set's name."""
    rng = np.random.default_rng(seed)
    ranking["pip"] = rng.beta(0.05, 60, len(ranking))
    ranking["credible_set"] = None
    for name, rows in members_of.items():
        ranking.loc[rows, "credible_set"] = name
        ranking.loc[rows, "pip"] = rng.dirichlet(np.ones(len(rows)))
    return ranking


def rows_of_colour(axes, ranking, colour):
    """Heights drawn in a colour."""
    from matplotlib.colors import to_rgba

    return [
        height
        for points in axes.collections
        if len(points.get_facecolors()) and np.allclose(points.get_facecolors()[0], to_rgba(colour))
        for height in np.asarray(points.get_offsets())[:, 1].tolist()
    ]


@pytest.mark.parametrize(
    ("chromosomes", "num_variants", "ids"),
    [
        ([*map(str, range(1, 23))], 3000, "rs{}"),
        (["6"], 200, "6:{}:ACGTACGTACGTACGT:A"),
    ],
)
def test_credible_sets_have_a_colour_each_and_their_leading_snps_are_named(
    tmp_path, drawn, chromosomes, num_variants, ids
):
    ranking = ranking_table(chromosomes=chromosomes, num_variants=num_variants, ids=ids)
    members = {f"cs{number + 1}": [number, 20 + 3 * number, 21 + 3 * number] for number in range(10)}
    ranking = with_sets(ranking, members)
    plots.association_plot(
        ranking,
        path=tmp_path / "a.png",
        method="single_effects",
        trait="height",
        causal=[ranking["variant_id"].iloc[0]],
    )
    (figure,) = drawn
    assert_well_laid_out(figure)
    upper, lower = figure.axes
    expected = {style.shortened(name, limit=15) for name in ranking["variant_id"].head(8)}
    assert {text.get_text() for text in lower.texts} == expected
    boxes = [text.get_window_extent() for text in lower.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    title = lower.get_title("left")
    assert title.endswith("10 credible sets, the leading SNPs of the best 8 named")
    assert lower.get_ylim()[1] > 1
    assert lower.get_yticks().max() == 1
    # Along the genome neighbouring sets differ; every member is drawn in its set's colour in both panels.
    axis = GenomeAxis.of(ranking)
    sets = drawn_sets(ranking, axis=axis)
    assert [one.members.tolist() for one in sets] == list(members.values())
    along = sorted(sets, key=lambda one: axis.places[one.leading])
    assert all(a.colour != b.colour for a, b in itertools.pairwise(along))
    for axes, column in ((upper, "marginal"), (lower, "pip")):
        for colour in {one.colour for one in sets}:
            rows = [row for one in sets if one.colour == colour for row in one.members]
            assert sorted(rows_of_colour(axes, ranking, colour)) == sorted(ranking[column].iloc[rows])
        assert len(axes.patches) >= 6  # Shaded blocks.


@pytest.mark.parametrize("column", [None, np.nan])
def test_probabilities_without_a_credible_set(tmp_path, drawn, column):
    ranking = ranking_table(chromosomes=["2"], num_variants=300)
    ranking["pip"], ranking["credible_set"] = 0.0, column
    plots.association_plot(ranking, path=tmp_path / "a.png", method="single_effects", trait="height")
    assert_well_laid_out(drawn[0])
    lower = drawn[0].axes[1]
    assert lower.get_title("left").endswith(": no credible set")
    assert not lower.texts
    assert not lower.patches
    assert not rows_of_colour(lower, ranking, style.ORANGE)
    assert lower.get_ylim()[1] >= 1


def test_association_alone_names_only_what_passes(tmp_path, drawn):
    ranking = ranking_table(chromosomes=["1"], num_variants=100)
    for passing, told in ((0, "no SNP passes Bonferroni"), (2, "the 2 leading SNPs named")):
        ranking["marginal"] = ranking["score"] = np.where(np.arange(100) < passing, 9.0, 1.0)
        plots.association_plot(ranking, path=tmp_path / "a.png", method="marginal", trait="height")
        lower = drawn[-1].axes[1]
        assert lower.get_title("left") == f"Importance by marginal association: {told}"
        assert len(lower.texts) == passing


def test_the_title_counts_the_sets_that_share_their_snps(tmp_path, drawn):
    ranking = with_sets(ranking_table(chromosomes=["2"], num_variants=300), {"cs1": [0], "cs3": [5, 6]})
    plots.association_plot(
        ranking, path=tmp_path / "a.png", method="ensemble", trait="a trait " * 30, num_sets=4
    )
    assert_well_laid_out(drawn[0])
    told = "4 credible sets, some of the same SNPs, in 2 colours, their leading SNPs named"
    assert drawn[0].axes[1].get_title("left").endswith(told)


def test_sets_whose_names_do_not_fit_are_left_unnamed(tmp_path, drawn):
    ranking = ranking_table(chromosomes=["2"], num_variants=300, ids="WWWWWWWWWWWW{}WWWWWWWWWWWWWWW")
    plots.association_plot(
        with_sets(ranking, {"a": [0], "b": [1]}), path=tmp_path / "a.png", method="ensemble", trait="height"
    )
    assert drawn[0].axes[1].get_title("left").endswith("2 credible sets, their leading SNPs named")
    plots.association_plot(
        with_sets(ranking, {row: [row] for row in range(1, 9)}),
        path=tmp_path / "b.png",
        method="ensemble",
        trait="height",
    )
    lower = drawn[1].axes[1]
    assert_well_laid_out(drawn[1])
    assert 4 < len(lower.texts) < 8
    title = f"8 credible sets, the leading SNPs of the best {len(lower.texts)} named"
    assert lower.get_title("left").endswith(title)


def test_a_lone_set_is_told_as_one(tmp_path, drawn):
    ranking = with_sets(ranking_table(chromosomes=["2"], num_variants=300), {2.0: [3, 9]})
    plots.association_plot(ranking, path=tmp_path / "a.png", method="ensemble", trait="height")
    lower = drawn[0].axes[1]
    assert lower.get_title("left").endswith(": 1 credible set, its leading SNP named")
    assert [text.get_text() for text in lower.texts] == [ranking["variant_id"].iloc[3]]


def test_half_a_million_snps_are_drawn_in_seconds(tmp_path, drawn):
    ranking = ranking_table(chromosomes=[*map(str, range(1, 23))], num_variants=500_000)
    ranking = with_sets(ranking, {f"cs{number}": [7 * number, 7 * number + 1] for number in range(1, 30)})
    started = time.process_time()
    plots.association_plot(ranking, path=tmp_path / "a.png", method="single_effects", trait="height")
    assert time.process_time() - started < 15
    assert_well_laid_out(drawn[0])


def test_neighbouring_blocks_of_a_set_are_one_stretch():
    ranking = pd.DataFrame(
        {"chrom": "1", "pos": [1e6, 2e6, 2e6, 3e6, 5e6, 9e6], "block": ["a", "a", "b", "b", "c", "d"]}
    )
    axis = GenomeAxis.of(ranking)
    blue, red = np.array([0, 2]), np.array([4])
    assert shaded_blocks(ranking, [(blue, "blue"), (red, "red")], axis=axis) == [
        (1.0, 3.0, "blue"),
        (pytest.approx(4.984), pytest.approx(5.016), "red"),  # As wide as can be seen.
    ]
    assert [span[2] for span in shaded_blocks(ranking, [(blue, "blue"), (blue[:1], "red")], axis=axis)] == [
        "blue"
    ]


def test_the_genome_axis_keeps_chromosomes_apart():
    table = pd.DataFrame({"chrom": ["X", "2", "10", "2"], "pos": [5_000_000, 7_000_000, 100, 3_000_000]})
    axis = GenomeAxis.of(table)
    assert axis.names == ("2", "10", "X")
    np.testing.assert_allclose(axis.places, [4.064, 4.0, 4.032, 0.0])
    alone = GenomeAxis.of(table[table["chrom"] == "2"])
    assert alone.places.tolist() == [7.0, 3.0]
    # In the order of the ranking, also where a species has more autosomes than ours.
    cattle = pd.DataFrame({"chrom": ["X", "29", "3", "scaffold", "MT", "24"], "pos": 100})
    assert GenomeAxis.of(cattle).names == ("3", "24", "29", "X", "MT", "scaffold")
    # Chromosomes of a single position each do not fall on each other.
    assert np.ptp(GenomeAxis.of(table.iloc[:3]).places) > 0


def pair_rows(ranking, pairs, *, seed=0):
    rng = np.random.default_rng(seed)
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return pd.DataFrame(
        {
            "variant_id_1": ranking["variant_id"].to_numpy()[first],
            "variant_id_2": ranking["variant_id"].to_numpy()[second],
            "effect": np.where(np.arange(len(pairs)) % 2, 0.2, -0.125),
            "pip": np.linspace(0.9, 0.1, len(pairs)),
            "neg_log10_p": rng.exponential(9, len(pairs)),
        }
    )


@pytest.mark.parametrize(
    ("chromosomes", "num_variants", "ids"),
    [
        ([*map(str, range(1, 23))], 2000, "rs{}"),
        (["6"], 200, "6:{}:ACGTACGTACGTACGT:A"),
        (["1", "2"], 100, "rs{}"),
    ],
)
def test_pair_map_places_every_pair_below_the_diagonal(tmp_path, drawn, chromosomes, num_variants, ids):
    ranking = with_sets(
        ranking_table(chromosomes=chromosomes, num_variants=num_variants, ids=ids),
        {"cs1": [0, 1], "cs2": [2]},
    )
    rng = np.random.default_rng(0)
    chosen = [(0, 1), (1, 0), *map(tuple, rng.integers(0, num_variants, (12, 2)))]
    unlikely = pair_rows(ranking, [(3, 4)]).assign(pip=0.01)
    pairs = pd.concat([pair_rows(ranking, chosen), unlikely], ignore_index=True)
    names = ranking["variant_id"]
    planted = [(names[0], names[1]), (names[2], "not genotyped")]
    plots.pair_map(
        pairs.sample(frac=1, random_state=1),
        ranking,
        path=tmp_path / "p.png",
        trait="a $",
        causal_pairs=planted,
    )
    assert imread(tmp_path / "p.png").std() > 0.01
    (figure,) = drawn
    assert_well_laid_out(figure)
    (axes,) = figure.axes
    places = GenomeAxis.of(ranking).places
    dots, diamonds = (marks for marks in axes.collections if len(marks.get_offsets()))
    # The most probable last, above the others.
    expected = [sorted((places[a], places[b]), reverse=True) for a, b in reversed(chosen)]
    np.testing.assert_allclose(dots.get_offsets(), expected)
    colours = [to_hex(colour).upper() for colour in dots.get_facecolors()]
    assert colours == [style.BLUE, style.VERMILLION] * 7
    assert np.all(np.diff(dots.get_sizes()) > 0)
    np.testing.assert_allclose(diamonds.get_offsets(), [sorted(places[[0, 1]], reverse=True)])
    assert axes.get_title("left").endswith("14 pairs, 7 of PIP 0.5 or more")
    listed, *numbers = sorted((text.get_text() for text in axes.texts), key=len, reverse=True)
    assert "effect −0.12" in listed
    assert listed.count("PIP") == 5
    # The first two are one place: their numbers share a mark.
    assert "1, 2" in numbers
    assert sorted(",".join(numbers).replace(" ", "").split(",")) == list("12345")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "planted pair" in legend
    assert "LD block of a credible set" in legend


@pytest.mark.parametrize("num_variants", [1, 50])
def test_pair_map_without_pairs_says_so(tmp_path, drawn, num_variants):
    ranking = ranking_table(chromosomes=["3"], num_variants=num_variants)
    plots.pair_map(pair_rows(ranking, []), ranking, path=tmp_path / "p.png", trait="height")
    (axes,) = drawn[0].axes
    assert_well_laid_out(drawn[0])
    assert axes.get_title("left") == "SNPs that act together on height: none stands out"
    assert axes.texts[0].get_text().startswith("No pair of SNPs stood out")
    assert not drawn[0].legends


def test_pair_map_of_a_single_pair(tmp_path, drawn):
    ranking = with_sets(ranking_table(chromosomes=["3"], num_variants=2), {"cs1": [0], "cs2": [1]})
    plots.pair_map(pair_rows(ranking, [(0, 1)]), ranking, path=tmp_path / "p.png", trait="height")
    assert_well_laid_out(drawn[0])
    assert drawn[0].axes[0].get_title("left").endswith("1 pair, PIP 0.90")


def block_rows(pve, *, names="{}:1000000-2000000"):
    pve = np.asarray(pve)
    return pd.DataFrame(
        {
            "block": [names.format(number) for number in range(len(pve))],
            "pve": pve,
            "pve_low": np.maximum(pve - 0.02, 0),
            "pve_high": pve + 0.03,
            "best_snp": [f"rs{number}" for number in range(len(pve))],
            "credible_sets": ["cs1" if value > 0.03 else None for value in pve],
        }
    )


@pytest.mark.parametrize("num", [1, 4, 60])
def test_block_plot_shows_the_largest_shares(tmp_path, drawn, num):
    pve = np.random.default_rng(0).permutation(np.linspace(0.15, 0.002, num))
    table = block_rows(pve, names="chromosome_{}:a very long name of a block from a table")
    plots.block_plot(table, path=tmp_path / "b.png", trait="cost in $" * 9, total=(0.5, 0.45, 0.56))
    assert imread(tmp_path / "b.png").std() > 0.01
    (figure,) = drawn
    assert_well_laid_out(figure)
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, 100 * np.sort(pve)[::-1][:15])
    (line,) = (bar for bars in axes.containers for bar in getattr(bars, "lines", [()])[-1])
    ends = np.array([segment[:, 0] for segment in line.get_segments()])
    np.testing.assert_allclose(ends[:, 1] - widths, 3.0)
    np.testing.assert_allclose(ends[:, 0], np.maximum(np.array(widths) - 2, 0), atol=1e-9)
    assert "All blocks together 50.0 % (45.0 to 56.0)" in figure.get_suptitle()
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[0].endswith(f"rs{pve.argmax()}")
    boxes = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_block_plot_without_effects_says_so(tmp_path, drawn):
    plots.block_plot(block_rows([0.0, 1e-5]), path=tmp_path / "b.png", trait="height", total=(0, 0, 0))
    assert_well_laid_out(drawn[0])
    assert drawn[0].axes[0].texts[0].get_text().startswith("No credible set: ")
    assert "together" not in drawn[0].get_suptitle()


def test_without_a_credible_set_no_block_has_a_bar(tmp_path, drawn):
    blocks = block_rows([0.03, 0.02]).assign(credible_sets=None)
    plots.block_plot(blocks, path=tmp_path / "b.png", trait="height", total=(0.05, 0.01, 0.1))
    assert not drawn[0].axes[0].patches
    assert "none to show" in drawn[0].get_suptitle()


def test_pairs_that_nobody_looked_for_are_not_said_to_be_absent(tmp_path, drawn):
    none = pd.DataFrame(columns=["variant_id_1", "variant_id_2", "effect", "pip", "neg_log10_p"])
    ranking = ranking_table(chromosomes=["2"], num_variants=30)
    plots.pair_map(none, ranking, path=tmp_path / "p.png", trait="height", looked_for=False)
    assert drawn[0].axes[0].get_title("left").endswith("height: not looked for")
    assert drawn[0].axes[0].texts[0].get_text() == "Pairs of SNPs were not looked for."


def test_a_threshold_that_nothing_passes_is_seen(tmp_path, drawn):
    ranking = ranking_table(chromosomes=["2"], num_variants=30)
    ranking["marginal"] /= 10
    plots.association_plot(ranking, path=tmp_path / "a.png", method="marginal", trait="height")
    upper = drawn[0].axes[0]
    (line,) = [line for line in upper.lines if "Bonferroni" in str(line.get_label())]
    assert ranking["marginal"].max() < line.get_ydata()[0] < upper.get_ylim()[1]


def test_the_methods_of_a_ranking_of_nothing_say_so(tmp_path, drawn):
    ranking = ranking_table(chromosomes=["2"], num_variants=30).assign(credible_set=None)
    plots.importance_by_method(ranking, path=tmp_path / "m.png", methods=["marginal", "attention"])
    assert "No credible set" in drawn[0].get_suptitle()
    assert_well_laid_out(drawn[0])


def crossings(points, centres, row):
    """By solving for the meeting point of each pair of lines."""
    count = 0
    for i, j in itertools.combinations(range(len(points)), 2):
        a, b = points[i], np.array([centres[i], row])
        c, d = points[j], np.array([centres[j], row])
        matrix = np.column_stack([b - a, c - d])
        if abs(np.linalg.det(matrix)) > 1e-9:
            s, t = np.linalg.solve(matrix, c - a)
            count += bool(1e-6 < s < 1 - 1e-6 and 1e-6 < t < 1 - 1e-6)
    return count


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 500)), min_size=1, max_size=5, unique=True))
@settings(max_examples=40, deadline=None)
def test_labels_never_overlap_and_their_lines_never_cross(points):
    places = np.array(points, dtype=float)
    widths = np.full(len(points), 150.0)
    centres = label_centres(places, widths=widths, low=0, high=1000, row=600)
    in_order = np.sort(centres)
    assert np.all(np.diff(in_order) >= 150 - 1e-6)
    assert in_order[0] >= 75 - 1e-6
    assert in_order[-1] <= 925 + 1e-6
    assert crossings(places, centres, 600) == 0


@given(st.lists(st.tuples(st.integers(0, 1400), st.integers(0, 500)), min_size=6, max_size=9, unique=True))
@settings(max_examples=15, deadline=None)
def test_many_labels_do_not_overlap_and_stay_in_the_row(points):
    places = np.array(points, dtype=float)
    widths = np.full(len(points), 150.0)
    centres = label_centres(places, widths=widths, low=0, high=1400, row=600)
    in_order = np.sort(centres)
    assert np.all(np.diff(in_order) >= 150 - 1e-6)
    assert in_order[0] >= 75 - 1e-6
    assert in_order[-1] <= 1325 + 1e-6


def test_lines_to_many_labels_hardly_ever_cross():
    rng = np.random.default_rng(0)
    num_crossed = 0
    for _ in range(20):
        points = np.column_stack([rng.integers(0, 1400, 8), rng.integers(0, 500, 8)]).astype(float)
        centres = label_centres(points, widths=np.full(8, 150.0), low=0, high=1400, row=600)
        num_crossed += crossings(points, centres, 600) > 0
    assert num_crossed <= 1


def test_a_lone_label_stands_over_its_point():
    assert label_centres(np.array([[300.0, 5]]), widths=np.array([80.0]), low=0, high=1000, row=9) == [300]


def test_importance_by_method_shows_each_methods_rank(tmp_path, drawn):
    ranking = ranking_table(chromosomes=["1"], num_variants=50)
    ranking["single_effects"] = ranking["attention"] ** 2
    plots.importance_by_method(
        ranking,
        path=tmp_path / "methods.png",
        methods=["attention", "single_effects", "marginal"],
        causal=[ranking["variant_id"].iloc[1]],
        num_leading=10,
    )
    assert_well_laid_out(drawn[0])
    axes = drawn[0].axes[0]
    shown = np.array([text.get_text() for text in axes.texts]).reshape(10, 3)
    assert shown[:, 2].tolist() == [str(rank) for rank in range(1, 11)]
    expected = ranking["attention"].rank(ascending=False).astype(int).head(10)
    assert shown[:, 0].astype(int).tolist() == shown[:, 1].astype(int).tolist() == expected.tolist()
    assert [tick.get_text() for tick in axes.get_xticklabels()][1] == "single\neffects"
    marked = [tick.get_text() for tick in axes.get_yticklabels() if "◆" in tick.get_text()]
    assert marked == [f"{ranking['variant_id'].iloc[1]} ◆"]


def test_training_curves_for_a_long_a_short_and_a_scoreless_run(tmp_path, drawn):
    losses = {"training": [0.9, 0.5, 0.3], "validation": [0.8, 0.6, 0.7]}
    plots.training_curves(
        losses=losses, scores={"AUROC": [0.5, 0.7, 0.6]}, best_epoch=2, path=tmp_path / "a.png"
    )
    plots.training_curves(losses={"training": [0.9]}, scores={}, best_epoch=1, path=tmp_path / "b.png")
    assert [len(figure.axes) for figure in drawn] == [2, 1]
    for figure in drawn:
        assert_well_laid_out(figure)
    line = drawn[0].axes[0].lines[1]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert list(line.get_ydata()) == losses["validation"]
    assert drawn[1].axes[0].lines[0].get_marker() == "o"
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["loss", "AUROC"]


def test_training_that_improved_nothing_says_so(tmp_path, drawn):
    losses = {"training": [np.nan, 0.5], "validation": [0.5, 0.6]}
    plots.training_curves(losses=losses, scores={}, best_epoch=0, first_epoch=0, path=tmp_path / "a.png")
    assert drawn[0].axes[0].get_title("left") == "Loss, kept as before the first epoch (dashed)"
    assert_well_laid_out(drawn[0])


@pytest.mark.parametrize("num", [3, 300])
def test_calibration_plot_of_a_rare_trait_and_of_classes(tmp_path, drawn, num):
    rng = np.random.default_rng(0)
    probability = rng.beta(1, 9, num)
    truth = (rng.random(num) < probability).astype(int)
    plots.calibration_plot(probability, truth, kind="binary", path=tmp_path / "binary.png")
    shares = rng.dirichlet(np.ones(4), num)
    plots.calibration_plot(shares, rng.integers(0, 4, num), kind="multiclass", path=tmp_path / "multi.png")
    for figure in drawn:
        assert_well_laid_out(figure)
    reliability, histogram = drawn[0].axes
    assert reliability.get_xlim()[1] < 1.0 or num == 3
    assert sum(bar.get_height() for bar in histogram.patches) == num
    points = reliability.containers[0].lines[0]
    assert len(points.get_xdata()) == min(10, num)
    assert np.mean(points.get_ydata()) == pytest.approx(truth.mean(), abs=0.02)


def test_roc_plot_of_two_and_of_many_classes(tmp_path, drawn):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 100)
    plots.roc_plot(truth * 0.4 + 0.3, truth, kind="binary", classes=["no", "yes"], path=tmp_path / "2.png")
    assert drawn[0].axes[0].get_title("left") == "ROC of yes against no: AUC 1.000"
    classes = [f"population with a long name {c}" for c in range(12)]
    many = rng.integers(0, 11, 300)  # Nobody has the twelfth.
    plots.roc_plot(
        rng.dirichlet(np.ones(12), 300), many, kind="multiclass", classes=classes, path=tmp_path / "12.png"
    )
    assert len(drawn[1].axes[0].lines) == 1 + 11
    drawn_as = {(line.get_color(), str(line._dash_pattern)) for line in drawn[1].axes[0].lines}
    assert len(drawn_as) == 12
    for figure in drawn:
        assert_well_laid_out(figure)


@pytest.mark.parametrize(("num", "spread"), [(200, 5.0), (6000, 5.0), (50, 0.0)])
def test_prediction_scatter_of_few_many_and_constant_predictions(tmp_path, drawn, num, spread):
    rng = np.random.default_rng(0)
    truth = rng.normal(170, 8, num)
    predicted = np.full(num, 170.0) + (spread > 0) * (0.5 * (truth - 170) + rng.normal(0, spread, num))
    plots.prediction_scatter(predicted, truth, trait="height (cm)", path=tmp_path / "scatter.png")
    (figure,) = drawn
    assert_well_laid_out(figure)
    assert figure.axes[0].get_xlabel() == "predicted height (cm)"
    assert figure.axes[0].get_xlim() == figure.axes[0].get_ylim()
    assert len(figure.axes) == (2 if num > 5000 else 1)
    assert len(figure.axes[0].lines) == (2 if spread else 1)


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), style.figure_file(tmp_path / "f.png", width=2, height=2):
        raise ZeroDivisionError
    assert list(tmp_path.glob("*.png")) == []


def test_long_names_keep_their_ends():
    assert style.shortened("rs12345") == "rs12345"
    short = style.shortened("12:48000000:ACGTACGTACGTTTTT:A", limit=15)
    assert (short, len(short)) == ("12:4800…TTTTT:A", 15)


def test_matplotlib_is_loaded_with_the_first_figure_only():
    code = "import sys, snpdeconv.interpret.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_thirty_classes_of_long_names_fit_beside_their_curves(tmp_path, drawn):
    rng = np.random.default_rng(0)
    plots.roc_plot(
        rng.dirichlet(np.ones(30), 600),
        rng.integers(0, 30, 600),
        kind="multiclass",
        classes=[f"a very long class name number {number} of the trait" for number in range(30)],
        path=tmp_path / "roc.png",
    )
    assert_well_laid_out(drawn[0])
    (legend,) = drawn[0].legends
    assert len(legend.get_texts()) == 30
    height = drawn[0].get_size_inches()[1] * drawn[0].dpi
    assert 0 <= legend.get_window_extent().y0 < legend.get_window_extent().y1 <= height

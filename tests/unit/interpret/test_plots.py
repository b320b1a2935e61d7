"""Figures: drawn for the shapes that cohorts have, nothing clipped, nothing on top of another thing."""

import contextlib
import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from snpdeconv.interpret import plots
from snpdeconv.interpret.plots import style
from snpdeconv.interpret.plots.labels import label_centres


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


def test_a_lone_label_stands_over_its_point():
    assert label_centres(np.array([[300.0, 5]]), widths=np.array([80.0]), low=0, high=1000, row=9) == [300]


def test_importance_by_method_shows_each_methods_rank(tmp_path, drawn):
    ranking = ranking_table(chromosomes=["1"], num_variants=50)
    plots.importance_by_method(
        ranking,
        path=tmp_path / "methods.png",
        methods=["attention", "marginal"],
        causal=[ranking["variant_id"].iloc[1]],
        num_leading=10,
    )
    assert_well_laid_out(drawn[0])
    axes = drawn[0].axes[0]
    shown = np.array([text.get_text() for text in axes.texts]).reshape(10, 2)
    assert shown[:, 1].tolist() == [str(rank) for rank in range(1, 11)]
    expected = ranking["attention"].rank(ascending=False).astype(int).head(10)
    assert shown[:, 0].astype(int).tolist() == expected.tolist()
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

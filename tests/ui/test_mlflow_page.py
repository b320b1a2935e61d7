from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import installed, open_browser
from command_line import Ran, train_words
from mlflow_picture import WIDTH, page, take
from PIL import Image
from required import missing

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture
def trained(cohort: Path, tmp_path: Path, run: Callable[..., Ran], request: pytest.FixtureRequest) -> None:
    """A home with one run and its model, `pictured`."""
    if not installed():
        missing("browser", "chromium and chromedriver are not installed", config=request.config)
    more = ("--set", "training.epochs=6", "--name", "pictured")
    done = run(*train_words(cohort, tmp_path / "run", *more))
    assert done.code == 0, done.err


def colours(picture: Image.Image) -> int:
    found = picture.convert("RGB").getcolors(maxcolors=2**24)
    assert found is not None
    return len(found)


def test_the_page_shows_a_run_its_curves_and_the_model_without_network(trained: None, tmp_path: Path) -> None:
    with page() as url:
        shots = take(url, model="pictured")
    run = Image.open(io.BytesIO(shots.run))
    assert run.width == WIDTH
    assert colours(run) > 100
    for text in ("Model metrics", "train", "val", "epoch_loss", "pearson_r", "pictured"):
        assert text in shots.run_text
    for text in ("pictured", "Version 1", "champion", "challenger", "Source Run", "snpdeconv.trait"):
        assert text in shots.model_text
    whole = shots.stacked()
    assert whole.height > run.height
    whole.save(tmp_path / "mlflow.png", optimize=True)
    assert (tmp_path / "mlflow.png").stat().st_size > 30_000


def test_the_browser_reaches_this_machine_only(request: pytest.FixtureRequest) -> None:
    """Guards the test above: offline means offline."""
    if not installed():
        missing("browser", "chromium and chromedriver are not installed", config=request.config)
    resolved_not = pytest.raises(RuntimeError, match="ERR_NAME_NOT_RESOLVED")
    with open_browser(width=300, height=200) as browser, resolved_not:
        browser.open("http://example.org/")

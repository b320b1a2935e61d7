"""Takes the README's picture of the MLflow page: a run with its curves, and the registered model below.

usage: SNPDECONV_HOME=demo/home python tests/ui/mlflow_picture.py demo docs/mlflow.png
"""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from browser import open_browser
from PIL import Image

from snpdeconv.tracking.connection import MlflowUi, connect, serve_ui
from snpdeconv.tracking.registry import resolve

WIDTH, HEIGHT = 1400, 1180
CURVES = "^(train/(epoch_loss|epoch_lr|gradient_norm)|val/(loss|pearson_r|r2))$"
MODEL_HEIGHT = 596


@dataclass(frozen=True)
class Shots:
    """Two pictures and the text that the pages showed."""

    run: bytes
    run_text: str
    model: bytes
    model_text: str

    def stacked(self) -> Image.Image:
        """The run's page above the upper part of the model's page."""
        above, below = (Image.open(io.BytesIO(shot)).convert("RGB") for shot in (self.run, self.model))
        below = below.crop((0, 0, below.width, MODEL_HEIGHT))
        whole = Image.new("RGB", (above.width, above.height + 12 + below.height), "white")
        whole.paste(above, (0, 0))
        whole.paste(below, (0, above.height + 12))
        return whole


def take(url: str, *, model: str) -> Shots:
    """Clicks through the page of the store that MLFLOW_TRACKING_URI or the home names.

    Args:
        url: Where the page is.
        model: The registered model's name; the run is the one that trained its champion.
    """
    champion = resolve(model)
    assert champion.run_id is not None
    experiment = connect(champion.uri).get_run(champion.run_id).info.experiment_id
    with open_browser(width=WIDTH, height=HEIGHT) as browser:
        # The page that `snpdeconv ui` opens: the runs, not that for users of language models.
        browser.open(MlflowUi(url, None, experiment).page)
        browser.wait_for_text("Run Name", f"{model} ")
        browser.wait(CLOSE_ASSISTANT)
        browser.open(f"{url}/#/experiments/{experiment}/runs/{champion.run_id}/model-metrics")
        browser.wait(TYPE, "Search metric charts", CURVES)
        # Each drawn curve is a path of the chart.
        browser.wait("return document.querySelectorAll('.js-plotly-plot path.js-line').length >= 6")
        browser.wait_for_text("epoch_loss", "pearson_r")
        browser.run(ADD_STYLE, NO_TOOLBARS)
        run, run_text = browser.picture(), browser.text()
        browser.open(f"{url}/#/models/{model}/versions/{champion.version}")
        browser.wait_for_text("Source Run", "champion", "challenger")
        # The page shows the run's name once it has asked for it.
        browser.wait(LINK_TO, champion.run_id)
        return Shots(run, run_text, browser.picture(), browser.text())


@contextmanager
def page() -> Iterator[str]:
    """The page over the home's own store, as `snpdeconv ui` serves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ui = serve_ui(port)
    try:
        yield ui.url
    finally:
        ui.stop()


LINK_TO = "return [...document.querySelectorAll('a')].some(link => link.href.includes(arguments[0]))"
# It opens by itself on the first visit, after a moment.
CLOSE_ASSISTANT = """
const close = document.querySelector('[data-component-id="mlflow.assistant.chat_panel.close"]');
close?.click();
return Boolean(close);
"""
# React listens to the event and looks at the value behind its own property.
TYPE = """
const field = document.querySelector(`input[placeholder="${arguments[0]}"]`);
if (!field) return false;
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, arguments[1]);
field.dispatchEvent(new Event('input', {bubbles: true}));
return true;
"""

ADD_STYLE = (
    "document.head.append(Object.assign(document.createElement('style'), {textContent: arguments[0]}))"
)
# Without a mouse the charts' toolbars never go away.
NO_TOOLBARS = ".modebar { display: none }"


def main() -> None:
    """Writes the picture of the model's page that the command line names."""
    model, picture = sys.argv[1:]
    with page() as url:
        take(url, model=model).stacked().save(Path(picture), optimize=True)


if __name__ == "__main__":
    main()

"""What validation said of a network, as it is kept beside the run."""

import json
import math

import torch

from snpdeconv.pipelines.fit import Fitted


def test_what_is_no_number_is_none_in_the_file():
    history = {"epoch": [1.0, 2.0], "val_loss": [0.5, 0.4], "val_auroc": [math.nan, math.nan]}
    start = {"val_loss": 0.6, "val_auroc": math.nan}
    model = torch.nn.Linear(1, 1)
    fitted = Fitted(model=model, history=history, start=start, best_epoch=2)
    assert fitted.validation() == {"val_loss": 0.4, "val_auroc": None}
    at_start = Fitted(model=model, history=history, start=start, best_epoch=0)
    assert json.dumps(at_start.validation(), allow_nan=False)
    assert at_start.validation()["val_loss"] == 0.6

"""Seeds on which something was chosen are not those of a report."""

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_no_seed_is_for_choices_and_for_reports(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("machine", None)
    from machine import REPORT_SEEDS, TUNING_SEEDS

    assert not set(REPORT_SEEDS) & set(TUNING_SEEDS)
    reported = json.loads((BENCHMARKS / "results" / "ranking.json").read_text())
    assert set(reported["seeds"]) <= set(REPORT_SEEDS)

"""What a method's answer is worth, given the truth of the study: a record for the results.

Knows no method. Shapes: V variants, C causal variants, P pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ranking_cells import Replicate
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

TOPS = (10, 20)
# A SNP stands for a causal one from this r² on, and is false where it has less than the second with all.
SAME_R2 = 0.8
FALSE_R2 = 0.1
Q_LEVELS = (0.05, 0.1, 0.2)
NUM_KEPT = 50


@dataclass(frozen=True)
class Answer:
    """What a method says of a study.

    Attributes:
        score: (V,) the higher, the sooner; ties are broken by marginal association, for every method alike.
        credible_sets: The SNPs of each set; None where the method has none.
        pairs: (P, 2) pairs reported; None where the method looks for none.
        q_value: Gives (V,) estimated false discovery rates, outside of the time; None where there are none.
        predicted: (NUM_HOLDOUT,) the trait, or the log odds, of people not seen; None where it cannot.
        extra: Further figures of its own.
    """

    score: NDArray[np.float64]
    credible_sets: tuple[NDArray[np.int64], ...] | None = None
    pairs: NDArray[np.int64] | None = None
    q_value: Callable[[], NDArray[np.float64]] | None = None
    predicted: NDArray[np.float64] | None = None
    extra: dict[str, float] | None = None


def judge(study: Replicate, answer: Answer, *, marginal: NDArray[np.float64]) -> dict[str, Any]:
    """Compares an answer with the truth.

    Args:
        study: The study.
        answer: The answer.
        marginal: (V,) strength of association, which breaks ties.

    Returns:
        `auprc`; `recall` of the first 10 and 20; `ld_recall`, which counts a causal SNP as found if any of
        the first 10 or 20 has r² >= .8 with it; `test` R² or AUC; and counts of `sets`, `pairs` and `q`.
    """
    order = np.lexsort((-marginal, -answer.score))
    r2 = r2_with_causal(study)
    record: dict[str, Any] = {"top": [[int(v), float(answer.score[v])] for v in order[:NUM_KEPT]]}
    if study.causal.any():
        by_rank = np.empty(len(order))
        by_rank[order] = -np.arange(len(order))
        found = {k: order[:k] for k in TOPS}
        record |= {
            "auprc": float(average_precision_score(study.causal, by_rank)),
            "recall": {k: float(study.causal[top].sum() / study.causal.sum()) for k, top in found.items()},
            "ld_recall": {k: float((r2[top] >= SAME_R2).any(axis=0).mean()) for k, top in found.items()},
        }
        if answer.predicted is not None:
            measure = roc_auc_score if study.kind == "binary" else r2_score
            record["test"] = float(measure(study.holdout_trait, answer.predicted))
    if answer.credible_sets is not None:
        record["sets"] = _judge_sets(study, answer.credible_sets)
    if answer.pairs is not None:
        record["pairs"] = _judge_pairs(study, answer.pairs, r2=r2)
    if answer.q_value is not None:
        record["q"] = _judge_q(answer.q_value, r2=r2)
    if answer.extra:
        record["extra"] = answer.extra
    return record


def r2_with_causal(study: Replicate) -> NDArray[np.float64]:
    """(V, C) squared correlation of every SNP with each causal one; the simulation has none missing."""
    codes = study.genotypes.codes().astype(np.float32)
    codes -= codes.mean(axis=0)
    length = np.sqrt((codes**2).sum(axis=0))
    codes /= np.where(length > 0, length, 1)
    return np.square(codes.T @ codes[:, study.causal]).astype(np.float64)


def _judge_q(q_values: Callable[[], NDArray[np.float64]], *, r2: NDArray[np.float64]) -> dict[str, Any]:
    """SNPs reported at each level, and how many of them are false; none is causal where there are none."""
    started = time.process_time()
    q_value = q_values()
    is_false = (r2 < FALSE_R2).all(axis=1)
    at = {str(level): q_value <= level for level in Q_LEVELS}
    counts = {level: [int(found.sum()), int((found & is_false).sum())] for level, found in at.items()}
    return {**counts, "cpu_seconds": time.process_time() - started}


def _judge_sets(study: Replicate, sets: tuple[NDArray[np.int64], ...]) -> dict[str, Any]:
    covering = [bool(study.causal[members].any()) for members in sets]
    inside = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *sets]))
    return {
        "num": len(sets),
        "covering": sum(covering),
        "causal_found": int(study.causal[inside].sum()),
        "sizes": [len(members) for members in sets],
    }


def _judge_pairs(study: Replicate, pairs: NDArray[np.int64], *, r2: NDArray[np.float64]) -> dict[str, Any]:
    """Pairs reported; those that are true, exactly or by proxies of r² >= .8; true ones that were found.

    False are pairs of which a member has r² < .1 with every causal SNP.
    """
    causal = np.flatnonzero(study.causal)
    exact = {tuple(sorted(pair)) for pair in study.pairs.tolist()}
    found, by_proxy = set(), 0
    for i, j in pairs.tolist():
        meant = None
        for first, second in exact:
            a, b = np.searchsorted(causal, [first, second])
            if max(min(r2[i, a], r2[j, b]), min(r2[i, b], r2[j, a])) >= SAME_R2:
                meant = (first, second)
        if meant is not None:
            by_proxy += 1
            found.add(meant)
    return {
        "num": len(pairs),
        "exact": sum(tuple(sorted(pair)) in exact for pair in pairs.tolist()),
        "true": by_proxy,
        "false": int((r2[pairs] < FALSE_R2).all(axis=2).any(axis=1).sum()),
        "found": len(found),
        "of": len(exact),
    }

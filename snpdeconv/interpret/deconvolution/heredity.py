"""What the pairs of a SNP make likely of its own columns: the prior that the last fit inherits.

Owns the weights that are added. Knows neither genotypes nor how effects are fitted.
Source of the principle: Chipman 1996 (Can J Stat 24:17). Shapes: V variants, P pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snpdeconv.interpret.deconvolution.products import PairColumns
from snpdeconv.interpret.single_effects import SingleEffectsFit

# Prior weight that a SNP of a sure pair gains, those of all dosages being 1.
FROM_PAIRS = 0.05


def inherited(fit: SingleEffectsFit, pairs: PairColumns) -> NDArray[np.float64]:
    """Prior weights to add: a SNP that acts in a pair likelier acts by itself as well.

    Among SNPs in LD, that a pair rests on one of them says which of them another signal nearby is of. Single
    SNPs pass nothing on to pairs.

    Args:
        fit: Of the columns of single SNPs and of the pairs.
        pairs: Its extra columns.

    Returns:
        (V,) of dosages, and of dominance.
    """
    paired = fit.column_pip[2 * len(fit.pip) :]
    missed = np.ones(len(fit.pip))
    for variants in pairs.pairs.T:
        np.multiply.at(missed, variants, 1 - paired)
    return np.asarray(FROM_PAIRS * (1 - missed))

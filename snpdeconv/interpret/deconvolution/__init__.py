"""Deconvolution: a trait taken apart into effects of single SNPs, their dominance and pairs of SNPs."""

from snpdeconv.genetics.terms import Terms
from snpdeconv.interpret.deconvolution.fit import Deconvolution, PairEffects, deconvolve

__all__ = ["Deconvolution", "PairEffects", "Terms", "deconvolve"]

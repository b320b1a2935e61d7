"""Deconvolution: a trait taken apart into effects of single SNPs, their dominance and pairs of SNPs."""

from snpdeconv.interpret.deconvolution.fit import Deconvolution, PairEffects, deconvolve
from snpdeconv.interpret.deconvolution.terms import Terms

__all__ = ["Deconvolution", "PairEffects", "Terms", "deconvolve"]

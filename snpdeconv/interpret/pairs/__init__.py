"""Interactions: every pair of SNPs tested against what single SNPs leave, calibrated, one clump a signal."""

from snpdeconv.interpret.pairs.columns import pair_columns
from snpdeconv.interpret.pairs.scan import PairScan, scan_pairs

__all__ = ["PairScan", "pair_columns", "scan_pairs"]

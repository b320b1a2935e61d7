"""Floor 3: every pair of SNPs tested against what single SNPs leave, calibrated, a clump a signal."""

from snpdeconv.epistasis.dosages import pair_columns
from snpdeconv.epistasis.scan import PairScan, scan_pairs

__all__ = ["PairScan", "pair_columns", "scan_pairs"]

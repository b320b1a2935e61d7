"""Floor 3: pairs of SNPs, and SNPs with covariates, tested against what single SNPs leave of a trait."""

from snpdeconv.epistasis.covariate import CovariateScan, scan_covariates
from snpdeconv.epistasis.dosages import pair_columns
from snpdeconv.epistasis.scan import PairScan, scan_pairs

__all__ = ["CovariateScan", "PairScan", "pair_columns", "scan_covariates", "scan_pairs"]

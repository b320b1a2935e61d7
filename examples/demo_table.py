"""Prints where a ranking puts the causal SNPs of a simulated cohort, and how well others are predicted.

Draws the ranking with the causal SNPs marked: FOLDER/association.png.
"""

import sys
from pathlib import Path

import pandas as pd

from snpdeconv.interpret import plots

folder = Path(sys.argv[1])
ranking = pd.read_csv(folder / "run" / "ranking.tsv", sep="\t", dtype={"chrom": str})
causal = pd.read_csv(folder / "data" / "causal.tsv", sep="\t", dtype={"chrom": str})

ranking = ranking.sort_values("rank")
rank_of = ranking.set_index("variant_id")["rank"]


def best_near(planted: pd.Series) -> int | None:
    """Rank of the best SNP within 50 kb of a planted one, itself included."""
    near = (ranking["chrom"] == planted["chrom"]) & ((ranking["pos"] - planted["pos"]).abs() <= 50_000)
    return int(ranking.loc[near, "rank"].min()) if near.any() else None


table = causal.assign(rank=causal["variant_id"].map(rank_of), best_rank=causal.apply(best_near, axis=1))
table = table.astype({"rank": "Int64", "best_rank": "Int64"}).sort_values(["rank", "best_rank"])
table["effect"] = table["effect"].map("{:+.2f}".format)
table = table[["variant_id", "effect", "rank", "best_rank"]]
print(table.rename(columns={"variant_id": "causal SNP", "best_rank": "best in 50 kb"}).to_string(index=False))
found = ranking.head(20)["variant_id"].isin(causal["variant_id"]).sum()
print(f"\n{found} of {len(causal)} causal SNPs stand among the first 20 of {len(ranking):,}.")

picture = folder / "association.png"
plots.association_plot(
    ranking, path=picture, method="ensemble", trait="trait", causal=set(causal["variant_id"])
)

predicted = pd.read_csv(folder / "predictions.tsv", sep="\t", dtype=str)
truth = pd.read_csv(folder / "data" / "holdout" / "phenotypes.tsv", sep="\t", dtype=str)
both = predicted.merge(truth, on="IID")
r = both["prediction"].astype(float).corr(both["trait"].astype(float))
print(f"Second cohort: correlation of prediction and trait {r:.2f} over {len(both):,} people.")

print(f"""
Where to look next
  {folder}/run/ranking.tsv            the SNPs, best first, with a score a method
  {folder}/association.png            the same along the genome, with the planted SNPs marked
  {folder}/run/metrics.json           test metrics with 95 % intervals
  {folder}/predictions.tsv            the second cohort
  snpdeconv ui                        runs, curves and models in the browser
                                      (here: SNPDECONV_HOME={folder}/home .venv/bin/snpdeconv ui)""")

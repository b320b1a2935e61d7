#!/usr/bin/env bash
# Simulates a cohort with known causal SNPs, then does with it what you would do with yours.
# usage: bash examples/demo.sh [FOLDER [OPTION OF snpdeconv train]...]
set -euo pipefail
folder=${1:-demo}
[ $# = 0 ] || shift
mkdir -p "$folder"
SNPDECONV_HOME=${SNPDECONV_HOME:-$(cd "$folder" && pwd)/home}
export SNPDECONV_HOME

say() { printf '\n== %s\n\n' "$*"; }

say "1. Simulate 2,000 people with 2,000 SNPs, of which 10 are causal, and 500 people more to predict"
rm -rf "$folder/data" "$folder/run" "$folder/predictions.tsv"
snpdeconv simulate "$folder/data" --samples 2000 --variants 2000 --causal 10 --trait additive --pve 0.5 --seed 1 --holdout 500

say "2. Train, test, rank and register"
snpdeconv train --genotypes "$folder/data/cohort.bed" --phenotypes "$folder/data/phenotypes.tsv" --trait trait \
    --preset small_cpu --name demo --out "$folder/run" "$@"

say "3. Predict the second cohort with the champion"
snpdeconv predict --model demo@champion --genotypes "$folder/data/holdout/cohort.bed" --out "$folder/predictions.tsv"

say "4. Planted and found"
python "$(dirname "$0")/demo_table.py" "$folder"

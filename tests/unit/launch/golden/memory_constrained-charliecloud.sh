#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --job-name=snpdeconv-height-DATE-TIME
#SBATCH --mem=16G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/jobs/height-DATE-TIME/log/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=1440

# setup
export SNPDECONV_HOME=/home/me
export OMP_NUM_THREADS=4
export OMP_WAIT_POLICY=passive
export PYTHONSAFEPATH=1
export MPLCONFIGDIR=/home/me/cache/matplotlib
export TORCHINDUCTOR_CACHE_DIR=/home/me/cache/torchinductor
export TRITON_CACHE_DIR=/home/me/cache/triton
export LOGNAME=me
export USER=me
job=/home/me/jobs/height-DATE-TIME/log/"$SLURM_JOB_ID"
rm -f "$job.exit"
[ -e "${job}_submitted.pkl" ] || cp -p /home/me/jobs/height-DATE-TIME/log/"0.pkl" "${job}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/jobs/height-DATE-TIME/log/%j_%t_log.out --cpus-per-task=4 --kill-on-bad-exit=1 ch-run --bind /data/cohort --bind /home/me --env-no-expand --set-env --set-env=SNPDECONV_HOME=/home/me --set-env=OMP_NUM_THREADS=4 --set-env=OMP_WAIT_POLICY=passive --set-env=PYTHONSAFEPATH=1 --set-env=MPLCONFIGDIR=/home/me/cache/matplotlib --set-env=TORCHINDUCTOR_CACHE_DIR=/home/me/cache/torchinductor --set-env=TRITON_CACHE_DIR=/home/me/cache/triton --set-env=LOGNAME=me --set-env=USER=me /images/snpdeconv -- python -P -u -m snpdeconv.launch.entry /home/me/jobs/height-DATE-TIME/log


# teardown
code=$?
echo "$code" >"$job.exit"
if [ -e "$job.requeue" ]; then
  rm "$job.requeue"
  scontrol requeue "$SLURM_JOB_ID" || touch "$job.norequeue"
fi
exit "$code"

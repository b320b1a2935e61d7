#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --job-name=snpdeconv-height-DATE-TIME
#SBATCH --mem=64G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/jobs/height-DATE-TIME/log/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=720

# setup
export SNPDECONV_HOME=/home/me
export OMP_NUM_THREADS=8
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
srun --unbuffered --output /home/me/jobs/height-DATE-TIME/log/%j_%t_log.out --cpus-per-task=8 --kill-on-bad-exit=1 --container-image=/images/snpdeconv.sqsh --container-mounts=/scratch:/scratch,/data/cohort:/data/cohort,/home/me:/home/me --container-env=SNPDECONV_HOME,OMP_NUM_THREADS,OMP_WAIT_POLICY,PYTHONSAFEPATH,MPLCONFIGDIR,TORCHINDUCTOR_CACHE_DIR,TRITON_CACHE_DIR,LOGNAME,USER python -P -u -m snpdeconv.launch.entry /home/me/jobs/height-DATE-TIME/log


# teardown
code=$?
echo "$code" >"$job.exit"
if [ -e "$job.requeue" ]; then
  rm "$job.requeue"
  scontrol requeue "$SLURM_JOB_ID" || touch "$job.norequeue"
fi
exit "$code"

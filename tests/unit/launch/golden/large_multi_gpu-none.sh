#!/bin/bash

# Parameters
#SBATCH --account=genetics
#SBATCH --constraint='a100&nvlink'
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --job-name=snpdeconv-height-DATE-TIME
#SBATCH --mail-type=FAIL
#SBATCH --mem=256G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/home/me/jobs/height-DATE-TIME/log/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=2880

# setup
module load cuda
export SNPDECONV_HOME=/home/me
export OMP_NUM_THREADS=8
export OMP_WAIT_POLICY=passive
export PYTHONSAFEPATH=1
export MLFLOW_TRACKING_URI=http://mlflow.example.org:5000
export NCCL_SOCKET_IFNAME=ib0
job=/home/me/jobs/height-DATE-TIME/log/"$SLURM_JOB_ID"
rm -f "$job.exit"
[ -e "${job}_submitted.pkl" ] || cp -p /home/me/jobs/height-DATE-TIME/log/"0.pkl" "${job}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /home/me/jobs/height-DATE-TIME/log/%j_%t_log.out --cpus-per-task=8 --kill-on-bad-exit=1 /venv/python -P -u -m snpdeconv.launch.entry /home/me/jobs/height-DATE-TIME/log


# teardown
code=$?
echo "$code" >"$job.exit"
exit "$code"

#!/bin/bash
#SBATCH --job-name=isoflop
#SBATCH --nodes=1 --ntasks=1
#SBATCH --requeue --open-mode=append --signal=B:TERM@60
# Task k of the array runs line k of the file that is given: sbatch --array=1-12 docs/slurm_array.sh jobs.txt
# exec: the signals of Slurm (time limit, scancel, requeue) go to the run itself, which then saves a checkpoint.
eval "exec $(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")"

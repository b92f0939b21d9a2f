#!/bin/bash
# One training run as a SLURM job, one process a task. Submit it from the root of the repository, with Python's environment active:
#
#     sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 experiments/launch/slurm.sh --model cifar_resnet20 --out /shared/run
#
# Change nodes, tasks and GPUs there, the time below. jax gives each task the GPU of its number on the node: as many tasks a node as
# GPUs a node, and no --gpus-per-task. Without GPUs leave that option out. --out must be the same folder on every node.
#
#SBATCH --job-name=deepjax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --requeue
# SIGTERM 120 to 180 s before the time is over. Without "B:" it goes to the tasks and not to this shell: they save and exit 143, srun
# returns that, and the lines below queue the job again under its number. A step and a save must take less than those 120 s.
#SBATCH --signal=TERM@120

unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY # gRPC would ask them for the first process
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over since SLURM 22.05
if [ "$SLURM_JOB_NUM_NODES" = 1 ]; then # the coordinator's port has no password: on one machine nobody else shall reach it
    export JAX_COORDINATOR_ADDRESS=127.0.0.1:$((61440 + SLURM_JOB_ID % 4096))
    export JAX_COORDINATOR_BIND_ADDRESS=$JAX_COORDINATOR_ADDRESS
fi

# A process that ends does not take the others along before they have saved; they notice by themselves.
srun --kill-on-bad-exit=0 --label python experiments/train.py "$@"
code=$?
echo "srun exited $code after ${SLURM_RESTART_COUNT:-0} restarts"
case $code in
143) scontrol requeue "$SLURM_JOB_ID" ;;
75 | 134 | 137) [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || scontrol requeue "$SLURM_JOB_ID" ;; # hung, or a process was lost
esac
exit $code

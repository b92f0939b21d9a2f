#!/bin/bash
# One training run as a SLURM job, one process a task. Submit it from the root of the repository, with Python's environment active:
#
#     sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 experiments/launch/slurm.sh --model cifar_resnet20 --output-dir /shared/run
#
# Change nodes, tasks and GPUs there, the time below. jax gives each task the GPU of its number on the node: as many tasks a node as
# GPUs a node, and no --gpus-per-task. Without GPUs leave that option out. --output-dir must be the same folder on every node.
#
#SBATCH --job-name=deepjax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --requeue
# SIGTERM 120 to 180 s before the time is over. Without "B:" it goes to the tasks and not to this shell: they save and exit 143,
# srun returns that, and the last lines queue the job again under its number. A step and a save must take less than those 120 s.
#SBATCH --signal=TERM@120

# gRPC would ask a proxy for the first process.
unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
# Since SLURM 22.05 srun does not take this over from sbatch.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# The coordinator's port has no password: within one machine nobody else shall reach it.
if [ "$SLURM_JOB_NUM_NODES" = 1 ]; then
    export JAX_COORDINATOR_ADDRESS=127.0.0.1:$((61440 + SLURM_JOB_ID % 4096))
    export JAX_COORDINATOR_BIND_ADDRESS=$JAX_COORDINATOR_ADDRESS
fi

# A process that ends does not take the others along before they have saved; they notice by themselves.
srun --kill-on-bad-exit=0 --label python experiments/train.py "$@"
code=$?
echo "srun exited $code after ${SLURM_RESTART_COUNT:-0} restarts"
case $code in
143) scontrol requeue "$SLURM_JOB_ID" ;;
75 | 1[3-5][0-9]) [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || scontrol requeue "$SLURM_JOB_ID" ;; # hung, or ended by a signal
esac
exit $code

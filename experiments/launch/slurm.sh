#!/bin/bash
# One training run as a SLURM job, one process per task. Submit it from the root of the repository,
# with Python's environment active:
#
#     sbatch --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 experiments/launch/slurm.sh \
#         --model cifar_resnet20 --output-dir /shared/run
#
# Change nodes, tasks and GPUs there, the time below. JAX gives each task the GPU of its number on
# the node: as many tasks per node as GPUs per node, and no --gpus-per-task. Without GPUs omit that
# option. --output-dir must be the same folder on every node.
#
#SBATCH --job-name=deepjax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --requeue
# SIGTERM 120 to 180 s before the time limit. Without "B:" it goes to the tasks and not to this
# shell: they save and exit 143, srun returns that, and the last lines requeue the job under its
# number. A step and a save must take less than those 120 s.
#SBATCH --signal=TERM@120

# gRPC would send requests to process 0 through a proxy.
unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
# Since SLURM 22.05 srun does not inherit this from sbatch.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# The coordinator's port has no authentication: on one machine bind it to loopback.
if [ "$SLURM_JOB_NUM_NODES" = 1 ]; then
    export JAX_COORDINATOR_ADDRESS=127.0.0.1:$((61440 + SLURM_JOB_ID % 4096))
    export JAX_COORDINATOR_BIND_ADDRESS=$JAX_COORDINATOR_ADDRESS
fi

# A process that ends must not kill the others before they have saved; they notice by themselves.
srun --kill-on-bad-exit=0 --label python experiments/train.py "$@"
code=$?
echo "srun exited $code after ${SLURM_RESTART_COUNT:-0} restarts"
case $code in
143) scontrol requeue "$SLURM_JOB_ID" ;;
# Hung, or ended by a signal.
75 | 1[3-5][0-9]) [ "${SLURM_RESTART_COUNT:-0}" -ge 10 ] || scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code

"""Studies on a cluster: one task for each run and each measurement, by SLURM or Kubernetes."""

"""Where a run's jobs are done: in this process, on a Ray cluster, under Slurm."""

"""Floor 7: what a job is, what it asks for, and how it gets to SLURM or to a process of this machine."""

"""Trials: a run is trained again with one thing changed, to see what its dead kernels needed to die."""

TASK = "LIGHTNING_DEADKERNEL_TRIAL"
"""Environment variable that names the file with what a training of a trial is to do."""

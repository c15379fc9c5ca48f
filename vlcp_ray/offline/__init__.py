"""Bring what a job needs to a machine, or into a folder, so that the job runs without a network."""

"""Measure the rate of each kind of work on this machine, with the job's own stages and models."""

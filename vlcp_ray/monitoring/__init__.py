"""Monitoring of a run: progress, TensorBoard files, trackers, log files, peak memory."""

"""Check this machine and repair what a CPU build of torch breaks."""

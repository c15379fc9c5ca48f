"""Caption an image set without a job, in one process."""

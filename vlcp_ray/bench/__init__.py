"""How fast this machine is: every kind of work measured through the package's own stages, with the job's models."""

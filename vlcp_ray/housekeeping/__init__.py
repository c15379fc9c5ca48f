"""What is under a root: runs, artifacts and their sizes; and how those that no job needs are deleted."""

"""Look at an image set before a run: what was recognised, the classes with their counts, and what is wrong with it."""

"""The only room that knows Ray: running stages over tables, classes, trials and training ranks."""

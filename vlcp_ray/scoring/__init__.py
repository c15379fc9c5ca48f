"""Scores of distilled sets that were made elsewhere: read a set, check it, and keep it as an artifact."""

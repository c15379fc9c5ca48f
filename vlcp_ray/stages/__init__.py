"""The method, a verb a file: plain functions and classes that know neither Ray nor paths."""

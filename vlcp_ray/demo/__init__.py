"""The embedded demo: real handwritten digits, and tiny base models in the real formats."""

"""Dataset distillation with vision-language category prototypes, on Ray."""

__version__ = "0.1.0"

"""Estimate the cost of a job: operations of its models, rates of devices, hours and money."""

"""The Ray layer, without code of any stage: cluster, resources, streaming plans, tasks, job submission."""

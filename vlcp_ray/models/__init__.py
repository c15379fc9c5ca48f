"""The networks behind the stages: Stable Diffusion, the captioner and the classifiers."""

"""The models that the stages use: Stable Diffusion, the captioner, the classifiers and the teacher."""

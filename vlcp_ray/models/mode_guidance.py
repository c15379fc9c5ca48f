"""Mode guidance: a DDIM scheduler that leads the predicted images of the first steps towards given latents."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput


class ModeGuidedScheduler(DDIMScheduler):  # type: ignore[misc] # diffusers has no types here
    """DDIM, in whose first steps the predicted image x0 becomes x0 + scale x (mode - x0).

    This is what the DDIM sampler of MGD3's released code does, for a DiT that predicts noise. The published figures are
    with its other sampler, DDPM, which adds scale x sigma_t x (mode - x0) to the mean of a step.

    The predicted noise of such a step is that with which the noisy latent has this image, so that the step is one of
    DDIM towards it. Whatever predicts the image stays as it is: a pipeline of diffusers runs with this scheduler as
    with any other.

    Args:
        modes: (n, c, h, w), one latent for each row of the next call of the pipeline.
        scale: 0: no guidance, 1: the mode is the predicted image.
        stop: share of the steps, from the first, that are guided.
    """

    modes: torch.Tensor
    scale: float
    stop: float

    @classmethod
    def of(cls, config: Any, scale: float, stop: float, **options: Any) -> "ModeGuidedScheduler":
        """Make one with the noise schedule of another scheduler's configuration.

        Args:
            config: of the other scheduler.
            scale, stop: see above.
            options: of DDIMScheduler, which replace those of `config`.
        """
        scheduler: ModeGuidedScheduler = cls.from_config(config, **options)
        scheduler.scale, scheduler.stop = scale, stop
        return scheduler

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[Any, ...]:
        """Take a step, from the most noise to none: see DDIMScheduler."""
        steps_done = int((self.timesteps > timestep).sum())
        if steps_done < self.stop * len(self.timesteps):
            model_output = self._guide(model_output, int(timestep), sample)
        result: DDIMSchedulerOutput | tuple[Any, ...] = super().step(
            model_output, timestep, sample, return_dict=return_dict
        )
        return result

    def _guide(self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor) -> torch.Tensor:
        """Return the output with which the step goes towards the guided image: noise or velocity, as the model's."""
        signal = float(self.alphas_cumprod[timestep].sqrt())
        noise = float((1 - self.alphas_cumprod[timestep]).sqrt())
        output, noisy = model_output.float(), sample.float()
        is_noise = self.config.prediction_type == "epsilon"
        image = (noisy - noise * output) / signal if is_noise else signal * noisy - noise * output
        image = image + self.scale * (self.modes.to(image) - image)
        guided = (noisy - signal * image) / noise
        return (guided if is_noise else signal * guided - noise * image).to(model_output.dtype)

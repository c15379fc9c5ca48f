"""References for the benchmarks: the stages of the released code, rebuilt from METHOD.md as sequential programs.

As in the released code, most work is done one image at a time, latents are lists of Python floats, and the VAE runs
inside the training loop.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.utils import logging

from vlcp_ray import config
from vlcp_ray.models import stable_diffusion
from vlcp_ray.models.pretrained import folder
from vlcp_ray.models.words import stop_words

WORKERS = 2


class Captioner:
    """Caption with transformers' `generate`, one image at a time."""

    def __init__(self, settings: config.Caption) -> None:
        logging.disable_progress_bar()
        self.settings = settings
        self.processor = AutoProcessor.from_pretrained(folder(settings.model))
        self.model = LlavaForConditionalGeneration.from_pretrained(folder(settings.model)).eval()

    @torch.no_grad()
    def __call__(self, data: bytes, class_name: str) -> str:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        prompt = self.settings.prompt.replace("{class_name}", class_name)
        chat = f"USER: <image>\n{prompt} ASSISTANT:"
        inputs = self.processor(images=image, text=chat, return_tensors="pt")
        output = self.model.generate(
            **inputs,
            do_sample=True,
            temperature=self.settings.temperature,
            num_beams=1,
            max_new_tokens=self.settings.max_tokens,
        )
        answer = output[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(answer, skip_special_tokens=True)).replace('"', "").replace("'s", "")


class Images(Dataset[Tensor]):
    """Image files, transformed one at a time by torchvision."""

    def __init__(self, files: Sequence[bytes], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        pixels: Tensor = self.transform(Image.open(io.BytesIO(self.files[index])).convert("RGB"))
        return pixels


_TO_TENSOR = (transforms.ToTensor(), transforms.Normalize([0.5], [0.5]))


class Encoder:
    """Encode images from a DataLoader to latents as lists."""

    def __init__(self, base_model: str, files: Sequence[bytes], size: int, batch_size: int) -> None:
        self.vae: AutoencoderKL = stable_diffusion.load_vae(base_model, "cpu")
        square = transforms.Compose([transforms.Resize((size, size)), *_TO_TENSOR])
        self.loader = DataLoader(Images(files, square), batch_size, num_workers=WORKERS, persistent_workers=True)

    @torch.no_grad()
    def __call__(self) -> list[list[float]]:
        """Encode all files."""
        latents: list[list[float]] = []
        for pixels in self.loader:
            sampled = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
            latents += sampled.flatten(1).tolist()
        return latents


class Trainer:
    """Fine-tune by diffusers' text-to-image recipe on accelerate: `next` takes one optimiser step.

    As released, a step accumulates the gradients of four batches of eight images.
    """

    BATCH, ACCUMULATION = 8, 4

    def __init__(
        self, base_model: str, settings: config.Finetune, size: int, files: Sequence[bytes], captions: Sequence[str]
    ) -> None:
        self.settings = settings
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=self.ACCUMULATION)
        self.vae = stable_diffusion.load_vae(base_model, "cpu")
        self.scheduler = stable_diffusion.load_noise_schedule(base_model)
        self.text = stable_diffusion.load_text(base_model, "cpu", torch.float32)
        unet = stable_diffusion.load_unet(base_model, "cpu").train().requires_grad_(True)
        self.ema = EMAModel(unet.parameters(), decay=settings.ema_decay)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        flips = [transforms.RandomHorizontalFlip()] if settings.random_flip else []
        views = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), *flips, *_TO_TENSOR])
        loader = DataLoader(
            Pairs(files, captions, views), self.BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
        )
        self.unet, self.optimizer, self.loader = self.accelerator.prepare(unet, optimizer, loader)
        self.steps = self._steps()

    def __next__(self) -> float:
        """Take one step and return its mean loss."""
        return next(self.steps)

    def _steps(self) -> Iterator[float]:
        losses: list[float] = []
        while True:
            for pixels, captions in self.loader:
                with self.accelerator.accumulate(self.unet):
                    loss = self._loss(pixels, captions)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.unet.parameters(), self.settings.max_grad_norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                losses.append(loss.item())
                if self.accelerator.sync_gradients:
                    self.ema.step(self.unet.parameters())
                    yield sum(losses) / len(losses)
                    losses.clear()

    def _loss(self, pixels: Tensor, captions: Sequence[str]) -> Tensor:
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
            hidden = self.text.embed(self.text.tokenize(captions)).hidden
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        return nn.functional.mse_loss(self.unet(noisy, timesteps, hidden, return_dict=False)[0], noise)


class Pairs(Dataset[tuple[Tensor, str]]):
    """Images and their captions."""

    def __init__(self, files: Sequence[bytes], captions: Sequence[str], transform: Any) -> None:
        self.images, self.captions = Images(files, transform), captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.images[index], self.captions[index]


def prototypes(
    latents: Sequence[Sequence[float]],
    captions: Sequence[str],
    class_name: str,
    settings: config.Prototype,
    ipc: int,
    seed: int,
) -> tuple[list[list[float]], list[str]]:
    """Compute the centroids and texts of one class from latents as lists."""
    kept = list(range(len(latents)))
    if settings.contamination:
        outlier_factor = LocalOutlierFactor(settings.n_neighbors, contamination=settings.contamination)
        predicted = outlier_factor.fit_predict(np.array(latents))
        kept = [row for row in kept if predicted[row] != -1]
    inliers, inlier_captions = [latents[row] for row in kept], [captions[row] for row in kept]
    kmeans = KMeans(ipc, n_init=settings.n_init, random_state=seed).fit(np.array(inliers))
    common = _common_words(inlier_captions, settings.max_df)
    texts = []
    for cluster in range(ipc):
        members = [text for text, label in zip(inlier_captions, kmeans.labels_, strict=True) if label == cluster]
        texts.append(_text_prototype(members, common, class_name, settings.n_words))
    return kmeans.cluster_centers_.tolist(), texts


def _common_words(texts: Sequence[str], max_df: float) -> set[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        for word in set(_words(text)):
            counts[word] += 1
    return {word for word, count in counts.items() if count >= max_df * len(texts)}


def _text_prototype(members: Sequence[str], common: set[str], class_name: str, n_words: int) -> str:
    counts: Counter[str] = Counter()
    for text in members:
        for word in _words(text):
            if word not in common and word not in stop_words() and word not in class_name:
                counts[word] += 1
    top = counts.most_common(n_words)
    best, highest = "", 0
    for text in members:
        score = sum(count for word, count in top if word in text)
        if score > highest:
            best, highest = text, score
    return best


def _words(text: str) -> list[str]:
    return [word for word in "".join(c if c.isalpha() else " " for c in text.lower()).split() if len(word) > 1]


class Generator:
    """Generate with diffusers' own img2img from latents, one image at a time."""

    def __init__(self, base_model: str, settings: config.Generate) -> None:
        self.settings, self.pipeline = settings, stable_diffusion.load_pipeline(base_model, "cpu")

    def __call__(self, latent: np.ndarray[Any, Any], text: str, seed: int) -> bytes:
        image = self.pipeline(
            prompt=text,
            negative_prompt=self.settings.negative_prompt,
            image=torch.from_numpy(latent)[None],
            generator=torch.Generator().manual_seed(seed),
            strength=self.settings.strength,
            guidance_scale=self.settings.guidance_scale,
            num_inference_steps=self.settings.num_inference_steps,
        ).images[0]
        sink = io.BytesIO()
        image.resize((self.settings.image_size,) * 2, Image.Resampling.BICUBIC).save(sink, "PNG")
        return sink.getvalue()

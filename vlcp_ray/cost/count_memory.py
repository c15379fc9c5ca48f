"""Count the memory of models: `python -m vlcp_ray.cost.count_memory > vlcp_ray/cost/memory.json`, two minutes.

The models are built and run with torch's fake tensors, which have a size and no values, and the storages that are alive
are added up. Normalisations compute in float32, as under CUDA's autocast. (torch's own `MemTracker` does the same, but
needs many minutes where activations are recomputed.)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from vlcp_ray.cost.classifiers import PeakMemory
from vlcp_ray.cost.count_flops import BASE_MODELS, PAPER, added_conditions, build, config_of, lora_width
from vlcp_ray.cost.flops import TEXT_TOKENS
from vlcp_ray.cost.memory import CONV_WIDTH
from vlcp_ray.methods.idc import gradient_distance
from vlcp_ray.methods.sre2l import BatchNormDistance
from vlcp_ray.models import dit
from vlcp_ray.models.classifiers import build_classifier
from vlcp_ray.models.lora import LAYERS
from vlcp_ray.models.networks import NETWORKS, OWN, Norm
from vlcp_ray.stages.finetune.optimizer import MovingAverage, make_optimizer

#: The ways to train, and whether they recompute activations in the backward pass.
TRAINS: Final[Mapping[str, bool]] = {"recomputed": True, "kept": False}
_BATCHES: Final = (4, 8)
_HALF, _FULL = 2, 4  # bytes of a number
_RANK: Final = 16  # of LoRA's matrices; what else a step needs hardly depends on it
_SIDES: Final = (64, 128, 224)  # pixels, for each stem of the ResNets
_STATE_BYTES: Final = 16  # of a parameter that is trained: weight, two moments, moving average, in float32


def counts() -> dict[str, list[dict[str, Any]]]:
    """Count the paper's models, then the demo's, and the classifiers through which pixels are optimised."""
    demo = {part: config_of("demo/stable_diffusion", part) for part in ("unet", "vae")}
    models = ((PAPER, 64), (demo, 8))
    others = [(parts, parts["unet"]["sample_size"]) for parts in BASE_MODELS.values()]
    return {
        "unet": [count_unet(settings["unet"], side) for settings, side in (*models, *others)],
        "vae": [count_vae(settings["vae"], side) for settings, side in models],
        "transformer": [
            count_dit(settings, settings["sample_size"])
            for settings in (PAPER["transformer"], config_of("demo/dit", "transformer"))
        ],
        "llava": [count_llava(settings) for settings in (PAPER["llava"], config_of("demo/llava", ""))],
        "classifiers": [count_classifier(name) for name in OWN],
    }


def count_unet(settings: Mapping[str, Any], side: int, trains: Mapping[str, bool] = TRAINS) -> dict[str, Any]:
    """Count the bytes of a UNet besides its weights, which grow with the area of the latent.

    Args:
        settings: the content of its config.json.
        side: of the latents.
        trains: the ways to train that are counted, and whether they recompute activations.

    Returns `denoise`, bytes of a row and latent pixel in half precision, and for each way to train with fused AdamW the
    bytes of a step, and those of an image and latent pixel; and `lora`, the same for LoRA.
    """
    with FakeTensorMode():
        half = _build_half("unet", settings)
        denoise = _per_row(half, lambda rows: _call_unet(half, settings, rows, side)) / side**2
        model = build("unet", settings, "cpu").train()
        count: dict[str, Any] = {"parameters": _count_parameters(model), "denoise": denoise}
        for name, recompute in trains.items():
            fixed, image = _line([train_peak(model, settings, rows, side, recompute) for rows in _BATCHES])
            count[name] = [fixed, image / side**2]
        if trains:
            count["lora"] = _count_lora(settings, side, trains)
    return count


def _count_lora(settings: Mapping[str, Any], side: int, trains: Mapping[str, bool]) -> dict[str, Any]:
    """Count a step that trains LoRA's matrices beside frozen weights in half precision: see `count_unet`.

    Returns `width`, the weights that a rank of 1 has; and as `count_unet`, the bytes of a step besides all weights.
    """
    model = _build_half("unet", settings).train()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
            module.weight, module.bias = (
                nn.Parameter(torch.empty(part.shape)) for part in (module.weight, module.bias)
            )
    _compute_norms_in_float32(model)
    model.requires_grad_(False)
    inner = [layer for name, layer in model.named_modules() if name.endswith(LAYERS)]
    count: dict[str, Any] = {"width": lora_width(model)}
    added = [_Matrices(layer) for layer in inner]
    for name, recompute in trains.items():
        (model.enable_gradient_checkpointing if recompute else model.disable_gradient_checkpointing)()
        trained = [weight for matrices in added for weight in matrices.parameters()]
        peaks = []
        for rows in _BATCHES:
            with PeakMemory() as memory:
                memory.add([list(model.parameters()), trained])
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    predicted = _call_unet(model, settings, rows, side, torch.float)
                torch.autograd.backward(predicted.float().pow(2).mean())
                del predicted
            peaks.append(int(memory.peak - _HALF * _count_parameters(model) - _FULL * sum(map(torch.numel, trained))))
            for weight in trained:
                weight.grad = None
        fixed, image = _line(peaks)
        count[name] = [fixed, image / side**2]
    return count


class _Matrices(nn.Module):
    """The two matrices of LoRA beside a layer, in float32, of rank `_RANK`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Linear(layer.in_features, _RANK, bias=False)
        self.up = nn.Linear(_RANK, layer.out_features, bias=False)
        layer.register_forward_hook(self.add_product)

    def add_product(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Add what the matrices make of the input to the output of the layer."""
        change: torch.Tensor = self.up(self.down(inputs[0]))
        return output + change


def count_dit(settings: Mapping[str, Any], side: int, trains: Mapping[str, bool] = TRAINS) -> dict[str, Any]:
    """Count the bytes of a DiT in float32, which grow with the area of the latent.

    Args:
        settings: the content of its config.json.
        side: of the latents.
        trains: as in `count_unet`.

    Returns `parameters`, as its file has them; `weights`, the bytes of its weights; `denoise`, bytes of a row and
    latent pixel; and for each way to train DiffFit's weights with AdamW all bytes of a step without images, and those
    of an image and latent pixel.
    """
    with FakeTensorMode():
        model = build("transformer", settings, "cpu")
        count: dict[str, Any] = {"parameters": _count_parameters(model)}
        model = dit.adapt(model).eval().requires_grad_(False)
        count["weights"] = _FULL * _count_parameters(model)
        count["denoise"] = _per_row(model, lambda rows: _call_dit(model, rows, side)) / side**2
        wanted = dit.trained_by_difffit(model)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in wanted)
        for name, recompute in trains.items():
            fixed, image = _line([_train_dit_peak(model, rows, side, recompute) for rows in _BATCHES])
            count[name] = [fixed, image / side**2]
    return count


def _train_dit_peak(model: Any, rows: int, side: int, recompute: bool) -> int:
    """Return the most bytes of the second training step, with weights, moments and moving average."""
    (model.enable_gradient_checkpointing if recompute else model.disable_gradient_checkpointing)()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = make_optimizer("adamw", trained, 1e-3, 0.0)
    average = MovingAverage(model, 0.9999, torch.device("cpu"), warm_up=False)
    with PeakMemory() as memory:
        memory.add([list(model.parameters()), average.weights])
        for _ in range(2):
            memory.peak = memory.live
            predicted = _call_dit(model, rows, side)
            torch.autograd.backward(predicted.pow(2).mean())
            del predicted
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            average.step()
            optimizer.zero_grad(set_to_none=True)
    return int(memory.peak)


def _call_dit(model: Any, rows: int, side: int) -> torch.Tensor:
    noisy, zeros = torch.empty(rows, model.config.in_channels, side, side), torch.zeros(rows, dtype=torch.long)
    output: torch.Tensor = model(noisy, zeros, zeros, return_dict=False)[0]
    return output


def count_vae(settings: Mapping[str, Any], side: int) -> dict[str, Any]:
    """Count the bytes of an image and latent pixel in half precision, besides the weights, encoded and decoded."""
    with FakeTensorMode():
        model = _build_half("vae", settings)
        scale = 2 ** (len(model.config.block_out_channels) - 1)

        def pixels(rows: int) -> torch.Tensor:
            return torch.empty(rows, 3, scale * side, scale * side, dtype=torch.half)

        def latents(rows: int) -> torch.Tensor:
            return torch.empty(rows, model.config.latent_channels, side, side, dtype=torch.half)

        return {
            "parameters": _count_parameters(model),
            "encode": _per_row(model, lambda rows: model.encode(pixels(rows))) / side**2,
            "decode": _per_row(model, lambda rows: model.decode(latents(rows)).sample.float()) / side**2,
        }


def count_llava(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Count the weights of a LLaVA that 8 bits can hold, and the bytes of the keys and values of a token."""
    model = build("llava", settings)
    language = model.config.text_config
    values = language.num_hidden_layers * language.num_key_value_heads * language.head_dim
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {
        "parameters": _count_parameters(model),
        "linear": sum(module.weight.numel() for name, module in linear.items() if name != "lm_head"),
        "token": 2 * _HALF * values,
    }


def count_classifier(name: str) -> dict[str, Any]:
    """Count the bytes of an image and pixel where pixels are optimised through a classifier, by its stem.

    Returns `recover`, of an image of sre2l, and `match`, of a real and of a synthetic image of idc; those of a ConvNet
    with the width `CONV_WIDTH`.
    """
    recover, match = {}, {}
    for stem, side in _sides(name, "batch").items():
        recover[stem] = _line([_recover_peak(name, rows, side) for rows in _BATCHES])[1] / side**2
    many = 4  # real images for each of a batch: a synthetic image, whose gradient is differentiated, needs more
    for stem, side in _sides(name, "instance").items():
        real = _line([_match_peak(name, many * rows, 1, side) for rows in _BATCHES])[1] / many
        made = _line([_match_peak(name, 1, rows, side) for rows in _BATCHES])[1]
        match[stem] = [real / side**2, made / side**2]
    return {"name": name, "recover": recover, "match": match}


def _sides(name: str, norm: Norm) -> dict[str, int]:
    """Return a side of images for each stem of a network; a ConvNet has none, and is counted once, as "any"."""
    network = NETWORKS[name]
    return {"any": _SIDES[0]} if network.poolings else {network.stem(side, norm): side for side in _SIDES}


def _recover_peak(name: str, rows: int, side: int) -> int:
    """Return the most bytes of a step of sre2l on `rows` images."""
    with FakeTensorMode(), PeakMemory() as memory:
        network = _build(name, side, "batch").eval().requires_grad_(False)
        pixels = torch.empty(rows, 3, side, side, requires_grad=True)
        with BatchNormDistance(network) as distance:
            loss = cross_entropy(network(pixels), torch.zeros(rows, dtype=torch.long)) + distance.pop()
            torch.autograd.backward(loss)
        return int(memory.peak)


def _match_peak(name: str, real: int, made: int, side: int) -> int:
    """Return the most bytes of a step of idc on real and synthetic images."""
    with FakeTensorMode(), PeakMemory() as memory:
        network = _build(name, side, "instance")
        views = torch.empty(real + made, 3, side, side, requires_grad=True)
        torch.autograd.backward(gradient_distance(network, views, real, 0, "l1"))
        return int(memory.peak)


def _build(name: str, side: int, norm: Norm) -> nn.Module:
    return build_classifier(name, num_classes=10, input_size=side, width=CONV_WIDTH, seed=0, norm=norm)


def train_peak(model: Any, settings: Mapping[str, Any], rows: int, side: int, recompute: bool) -> int:
    """Return the most bytes of a training step, besides weights, moments and moving average.

    The step adds up the gradients of two batches of `rows` images, and is the second one, in which the moments exist
    already.
    """
    (model.enable_gradient_checkpointing if recompute else model.disable_gradient_checkpointing)()
    _compute_norms_in_float32(model)
    for parameter in model.parameters():
        parameter.grad = None
    optimizer = make_optimizer("adamw", model.parameters(), 1e-5, 0.01)
    average = MovingAverage(model, 0.9999, torch.device("cpu"))
    with PeakMemory() as memory:
        memory.add([list(model.parameters()), average.weights])
        for _ in range(2):
            memory.peak = memory.live
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    predicted = _call_unet(model, settings, rows, side)
                torch.autograd.backward(predicted.float().pow(2).mean())
                del predicted
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.step()
            optimizer.zero_grad(set_to_none=True)
    return int(memory.peak - _STATE_BYTES * _count_parameters(model))


def _call_unet(
    model: Any, settings: Mapping[str, Any], rows: int, side: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    dtype = dtype or next(model.parameters()).dtype
    noisy = torch.empty(rows, settings["in_channels"], side, side, dtype=dtype)
    text = torch.empty(rows, TEXT_TOKENS, settings["cross_attention_dim"], dtype=dtype)
    more, zeros = added_conditions(model.config, rows, dtype=dtype), torch.zeros(rows, dtype=torch.long)
    result: torch.Tensor = model(noisy, zeros, text, added_cond_kwargs=more, return_dict=False)[0]
    return result


def _build_half(part: str, settings: Mapping[str, Any]) -> Any:
    torch.set_default_dtype(torch.half)
    try:
        return build(part, settings, "cpu").eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float)


def _count_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _per_row(model: Any, call: Callable[[int], Any]) -> float:
    """Return the bytes that each row adds to the peak."""
    peaks = []
    for rows in _BATCHES:
        with torch.no_grad(), PeakMemory() as memory:
            memory.add(list(model.parameters()))
            call(rows)
        peaks.append(memory.peak)
    return _line(peaks)[1]


def _line(peaks: Sequence[int]) -> tuple[float, float]:
    """Return the line through the peaks of the two batches: its value at no row, and its slope."""
    slope = (peaks[1] - peaks[0]) / (_BATCHES[1] - _BATCHES[0])
    return peaks[0] - slope * _BATCHES[0], slope


def _compute_norms_in_float32(model: Any) -> None:
    """Let normalisations compute in float32, and return it, as CUDA's autocast has it."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            object.__setattr__(module, "forward", _in_float32(type(module).forward, module))


def _in_float32(forward: Callable[[Any, torch.Tensor], torch.Tensor], module: Any) -> Callable[..., torch.Tensor]:
    def call(values: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(module, values.float())

    return call


if __name__ == "__main__":
    print(json.dumps(counts(), indent=1))

"""Weights of the paper's released PyTorch networks, as parameters of ours.

Their networks have the same layers, under other names and with other axes (docs/networks.md). They
take t - 1 where ours take t: `convert` multiplies the first layer of the time embedding with a
rotation, which is exact. This module reads no files.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from colddiff.images import height_width
from colddiff.networks import ConvNeXtUNet, ResNetUNet
from colddiff.networks.layers import frequencies

ParamPath = tuple[str, ...]  # of a parameter in our tree
Arrays = Mapping[str, np.ndarray]

_NETWORKS = ("denoise_fn", "defade_fn")  # what their diffusion classes call the network
_FIRST_TIME_LAYER = ("Dense_0", "kernel")

_CONVNEXT_BLOCK = {
    "Dense_0": "mlp.1",
    "Conv_0": "ds_conv",
    "LayerNorm_0": "net.0",
    "Conv_1": "net.1",
    "Conv_2": "net.3",
    "Conv_3": "res_conv",
}
_LINEAR_ATTENTION = {
    "LayerNorm_0": "fn.norm",
    "Conv_0": "fn.fn.to_qkv",
    "Conv_1": "fn.fn.to_out",
}
_RESNET_BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "temb_proj",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Dense_1": "nin_shortcut",
}
_ATTENTION = {
    "GroupNorm_0": "norm",
    "Dense_0": "q",
    "Dense_1": "k",
    "Dense_2": "v",
    "Dense_3": "proj_out",
}
_AS_CONVOLUTION = (*_ATTENTION.values(), "nin_shortcut")  # our dense layers that are 1×1 there


class Tensor(NamedTuple):
    """A tensor of theirs that is a parameter of ours.

    Attributes:
      name: its name in their state dict.
      shape: its shape there.
      convert: makes our parameter from it.
    """

    name: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray]


def of_network(state: Arrays) -> dict[str, np.ndarray]:
    """Return the network's tensors of a state dict, by their names in the network.

    A trainer's state dict also holds the degradation's tables, and for snow and colour a second
    network, `one_shot_denoise_fn`. Names begin with `module.` where DataParallel wrapped a module.
    If no name says what the network is, all tensors are taken.
    """
    named, others = {}, {}
    for name, tensor in state.items():
        parts = [part for part in name.split(".") if part != "module"]
        if parts and parts[0] in _NETWORKS:
            named[".".join(parts[1:])] = tensor
        else:
            others[".".join(parts)] = tensor
    return named or others


def tensors_of(
    model: nn.Module, shapes: Mapping[ParamPath, tuple[int, ...]]
) -> dict[ParamPath, Tensor]:
    """Return the authors' tensor for each parameter of our network.

    Args:
      model: a `ConvNeXtUNet` or `ResNetUNet`.
      shapes: the shapes of its parameters, by path.
    """
    modules, inside = _convnext(model) if isinstance(model, ConvNeXtUNet) else _resnet(model)
    tensors = {}
    for path, shape in shapes.items():
        *outer, layer, leaf = path
        if outer:
            kind, number = outer[0].rsplit("_", 1)
            name = f"{modules[kind][int(number)]}.{inside[kind][layer]}"
        else:
            kind, number = layer.rsplit("_", 1)
            name = modules[kind][int(number)]
        tensors[path] = _tensor(name, layer, leaf, shape)
    return tensors


def convert(tensors: Mapping[ParamPath, Tensor], state: Arrays) -> dict[ParamPath, np.ndarray]:
    """Return our parameters, float32, from `state`, which holds all `tensors` in their shapes."""
    params = {path: tensor.convert(state[tensor.name]) for path, tensor in tensors.items()}
    if _FIRST_TIME_LAYER in params:
        kernel = params[_FIRST_TIME_LAYER]
        params[_FIRST_TIME_LAYER] = _previous_time(len(kernel)) @ kernel.astype(np.float64)
    return {path: np.ascontiguousarray(a, np.float32) for path, a in params.items()}


def fitting_fields(state: Arrays, image_size: Any) -> dict[str, Any]:
    """Return the config fields that describe their network; {} if it is neither network.

    Args:
      state: its tensors, by their names in the network.
      image_size: the config's, in which `attention_sizes` are counted.
    """

    def count(pattern: str) -> int:
        """Return how many names `pattern`, with 0, 1, 2, ... in it, there are."""
        number = 0
        while pattern.format(number) in state:
            number += 1
        return number

    def length(name: str, axis: int) -> int:
        shape = state[name].shape if name in state else ()
        return shape[axis] if axis < len(shape) else 0

    if levels := count("downs.{}.1.ds_conv.weight"):
        width = length("final_conv.1.weight", 1)
        widths = [length(f"downs.{i}.1.ds_conv.weight", 0) for i in range(levels)]
        fields = {
            "model.name": "convnext_unet",
            "data.channels": length("downs.0.0.ds_conv.weight", 0),
        }
        own = {"model.time_embedding": "time_mlp.1.weight" in state}
    elif levels := count("down.{}.block.0.conv1.weight"):
        width = length("conv_in.weight", 0)
        widths = [length(f"down.{i}.block.0.conv1.weight", 0) for i in range(levels)]
        fields = {"model.name": "resnet_unet", "data.channels": length("conv_in.weight", 1)}
        attentive = [i for i in range(levels) if f"down.{i}.attn.0.q.weight" in state]
        longer = max(height_width(image_size))
        own = {
            "model.num_blocks": count("down.0.block.{}.conv1.weight"),
            "model.attention_sizes": tuple(longer >> i for i in attentive),
        }
    else:
        return {}
    multipliers = tuple(each // width for each in widths) if width else ()
    return {**fields, "model.width": width, "model.multipliers": multipliers, **own}


def _convnext(model: ConvNeXtUNet) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Return the authors' names of its modules, by kind and number, and of each kind's layers."""
    levels = range(len(model.multipliers))
    downs, ups = [f"downs.{i}" for i in levels], [f"ups.{i}" for i in levels[:-1]]

    def pairs(places: list[str]) -> list[str]:
        return [f"{place}.{i}" for place in places for i in (0, 1)]

    modules = {
        "_Block": [*pairs(downs), "mid_block1", "mid_block2", *pairs(ups), "final_conv.0"],
        "_LinearAttention": [*(f"{d}.2" for d in downs), "mid_attn", *(f"{u}.2" for u in ups)],
        "Conv": [*(f"{d}.3" for d in downs[:-1]), "final_conv.1"],
        "ConvTranspose": [f"{u}.3" for u in ups],
        "Dense": ["time_mlp.1", "time_mlp.3"],
    }
    return modules, {"_Block": _CONVNEXT_BLOCK, "_LinearAttention": _LINEAR_ATTENTION}


def _resnet(model: ResNetUNet) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    """Return what `_convnext` returns, for a `ResNetUNet`."""
    levels, longer = range(len(model.multipliers)), max(height_width(model.image_size))
    attentive = [i for i in levels if longer >> i in model.attention_sizes]

    def places(of: str, chosen: Any) -> tuple[list[str], list[str]]:
        """Return the names on the way down and on the way up, at the levels in `chosen`."""
        down = [f"down.{i}.{of}.{j}" for i in levels for j in range(model.num_blocks)]
        up = [f"up.{i}.{of}.{j}" for i in levels[::-1] for j in range(model.num_blocks + 1)]
        return tuple([n for n in way if int(n.split(".")[1]) in chosen] for way in (down, up))

    down, up = places("block", levels)
    down_attention, up_attention = places("attn", attentive)
    halve = [f"down.{i}.downsample.conv" for i in levels[:-1]]
    double = [f"up.{i}.upsample.conv" for i in levels[:0:-1]]
    modules = {
        "_Block": [*down, "mid.block_1", "mid.block_2", *up],
        "_Attention": [*down_attention, "mid.attn_1", *up_attention],
        "Conv": ["conv_in", *halve, *double, "conv_out"],
        "GroupNorm": ["norm_out"],
        "Dense": ["temb.dense.0", "temb.dense.1"],
    }
    return modules, {"_Block": _RESNET_BLOCK, "_Attention": _ATTENTION}


def _tensor(name: str, layer: str, leaf: str, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of the parameter `leaf`, of this shape, of a layer called `name` there."""
    kind = layer.rsplit("_", 1)[0]
    if kind == "LayerNorm":
        name = f"{name}.{'g' if leaf == 'scale' else 'b'}"
        return Tensor(name, (1, *shape, 1, 1), lambda a: a.reshape(shape))
    if leaf == "bias":
        return Tensor(f"{name}.bias", shape, lambda a: a)
    name = f"{name}.weight"
    if leaf == "scale":
        return Tensor(name, shape, lambda a: a)
    *sides, inputs, outputs = shape
    if kind == "ConvTranspose":  # their kernels are mirrored
        return Tensor(
            name, (inputs, outputs, *sides), lambda a: a.transpose(2, 3, 0, 1)[::-1, ::-1]
        )
    if kind == "Conv":
        return Tensor(name, (outputs, inputs, *sides), lambda a: a.transpose(2, 3, 1, 0))
    as_convolution = name.split(".")[-2] in _AS_CONVOLUTION
    there = (outputs, inputs, 1, 1) if as_convolution else (outputs, inputs)
    return Tensor(name, there, lambda a: a.reshape(outputs, inputs).T)


def _previous_time(width: int) -> np.ndarray:
    """Return the matrix that turns the embedding of t into that of t - 1, float64.

    `embedding(t) @ matrix = embedding(t - 1)`: for each frequency f, sin((t-1) f) and cos((t-1) f)
    are sums of sin(t f) and cos(t f) with the weights cos f and ± sin f.
    """
    half, f = width // 2, np.asarray(frequencies(width), np.float64)
    matrix = np.eye(width)
    i = np.arange(half)
    matrix[i, i] = matrix[half + i, half + i] = np.cos(f)
    matrix[half + i, i], matrix[i, half + i] = -np.sin(f), np.sin(f)
    return matrix

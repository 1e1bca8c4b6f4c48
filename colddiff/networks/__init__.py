"""Restorers `R(xt, t) -> x0_hat` as Flax Linen modules.

`xt` is `[B, H, W, C]`, `t` int32 `[B]` in 0..T. The parameters do not depend on H and W.

`NETWORKS` names them for the configs. Parameters are float32; computations are in `dtype`. The
output is float32 and not bounded to [-1, 1]. This package has no losses, samplers or checkpoints.
"""

import flax.linen as nn

from colddiff.networks.convnext_unet import ConvNeXtUNet
from colddiff.networks.layers import init_params
from colddiff.networks.resnet_unet import ResNetUNet

NETWORKS: dict[str, type[nn.Module]] = {
    "convnext_unet": ConvNeXtUNet,
    "resnet_unet": ResNetUNet,
}

__all__ = ["NETWORKS", "ConvNeXtUNet", "ResNetUNet", "init_params"]

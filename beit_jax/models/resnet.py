"""ResNet-50 without its classifier: four stages of bottleneck blocks, stride on the 3x3.

Submodules bear torchvision's names, `layer1.0.conv1` written as `layer1/block0/conv1`. Nothing here
is trained: batch normalisation always takes its running averages, collection "batch_stats".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

EXPANSION = 4  # channels that leave a bottleneck, per channel of its 3x3
STRIDE = 32  # pixels per cell of the last map, along each side
_WEIGHTS = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def symmetric(kernel_size: int):
    """Padding of equal width on all sides. XLA's "SAME" is not: at stride 2 and an even size it
    pads one side alone and moves every map by half a cell."""
    return ((kernel_size // 2,) * 2,) * 2


def convolution(features: int, kernel_size: int, stride: int, dtype, name: str) -> nn.Conv:
    """Without a bias: a batch norm follows."""
    return nn.Conv(features, (kernel_size,) * 2, (stride,) * 2, padding=symmetric(kernel_size),
                   use_bias=False, kernel_init=_WEIGHTS, dtype=dtype, name=name)


def batch_norm(name: str, dtype=jnp.float32) -> nn.BatchNorm:
    """By the running averages, in float32; the result in `dtype`."""
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, dtype=dtype, name=name)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut. x float32 [b, h, w, c] -> float32 [b, h/s, w/s, 4 width].

    Attributes: stride: s, of the 3x3; project: whether the shortcut is a 1x1 convolution.
    """

    width: int
    stride: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        dtype, shortcut = self.dtype, x
        y = convolution(self.width, 1, 1, dtype, "conv1")(x)
        y = jax.nn.relu(batch_norm("bn1", dtype)(y))
        y = convolution(self.width, 3, self.stride, dtype, "conv2")(y)
        y = jax.nn.relu(batch_norm("bn2", dtype)(y))
        y = convolution(EXPANSION * self.width, 1, 1, dtype, "conv3")(y)
        y = batch_norm("bn3")(y)
        if self.project:
            shortcut = convolution(EXPANSION * self.width, 1, self.stride, dtype,
                                   "downsample_conv")(x)
            shortcut = batch_norm("downsample_bn")(shortcut)
        return jax.nn.relu(y + shortcut)


class Stage(nn.Module):
    """Bottlenecks of equal width; the first one has the stride and projects its shortcut."""

    num_blocks: int
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for index in range(self.num_blocks):
            x = Bottleneck(self.width, self.stride if index == 0 else 1, index == 0, self.dtype,
                           name=f"block{index}")(x)
        return x


class ResNet(nn.Module):
    """ResNet-50, or with other sizes its like, up to the map before global pooling.

    Attributes:
      layers: blocks of the four stages.
      widths: channels of their 3x3 convolutions; four times as many leave a stage.
      stem_width: channels of the first convolution.
      dtype: of convolutions; running averages and the sums with the shortcuts are float32.
    Args (call): image float [b, h, w, 3], normalised.
    Returns: float32 [b, h / 32, w / 32, 4 widths[-1]], after the last ReLU; sizes round up.
    Raises: ValueError: layers and widths do not describe four stages.
    Source: ResNet (arXiv 1512.03385), Table 1; torchvision models/resnet.py, resnet50, whose
      stride stands on the 3x3 and not, as in the paper, on the first 1x1.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image):
        if not len(self.layers) == len(self.widths) == 4:
            raise ValueError(f"layers={self.layers} and widths={self.widths}: a ResNet has 4 "
                             "stages, give 4 numbers each")
        x = convolution(self.stem_width, 7, 2, self.dtype, "conv1")(image)
        x = jax.nn.relu(batch_norm("bn1")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=symmetric(3))
        for index, (num_blocks, width) in enumerate(zip(self.layers, self.widths)):
            x = Stage(num_blocks, width, 1 if index == 0 else 2, self.dtype,
                      name=f"layer{index + 1}")(x)
        return x

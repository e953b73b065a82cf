"""The discrete VAE of DALL-E: images to a grid of codes and back.

Source: DALL-E (arXiv 2102.12092), Sec. 2.1 and appendix A; openai/DALL-E dall_e/encoder.py,
decoder.py. Parameters bear the names of that code's state dict, `.` written as `/`.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from beit_jax.options import Count, within

PIXEL_EPS = 0.1  # keeps pixels off 0 and 1, where the density of the likelihood has its poles
CHANNELS_OUT = 6  # mu of R, G, B, then ln b of R, G, B


def map_pixels(x: jax.Array) -> jax.Array:
    """Moves pixels from [0, 1] to [0.1, 0.9], the encoder's input. No mean, no std: with them
    nearly all codes come out equal."""
    return (1 - 2 * PIXEL_EPS) * x + PIXEL_EPS


def unmap_pixels(y: jax.Array) -> jax.Array:
    """Undoes `map_pixels` and clips to [0, 1]."""
    return jnp.clip((y - PIXEL_EPS) / (1 - 2 * PIXEL_EPS), 0.0, 1.0)


def pixels_of_stats(stats: jax.Array) -> jax.Array:
    """Decoder statistics [b, h, w, 6] -> the image they stand for, [b, h, w, 3] in [0, 1]."""
    return unmap_pixels(jax.nn.sigmoid(stats[..., :3]))


class Conv(nn.Module):
    """Convolution, stride 1, zero padding (k - 1) / 2, bias. x: [b, h, w, c_in] -> [b, h, w, c].

    Weights start at N(0, 1 / fan-in), biases at 0. Source: dall_e/utils.py, Conv2d.
    """

    features: int
    kernel_size: int
    dtype: jnp.dtype = jnp.float32
    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        w = self.param("w", nn.initializers.variance_scaling(1.0, "fan_in", "normal"), shape)
        b = self.param("b", nn.initializers.zeros, (self.features,))
        x, w, b = (value.astype(self.dtype) for value in (x, w, b))
        if self.kernel_size == 1:
            # A flat matrix product: on a CPU its gradient takes a quarter of a convolution's.
            flat = jnp.matmul(x.reshape(-1, x.shape[-1]), w[0, 0], precision=self.precision)
            return flat.reshape(*x.shape[:-1], self.features) + b
        if x.shape[-1] < 8:
            x, w = _columns_as_channels(x, w)
        layout = ("NHWC", "HWIO", "NHWC")
        radius = self.kernel_size // 2
        padding = [(radius, radius), (w.shape[1] // 2, w.shape[1] // 2)]
        return b + jax.lax.conv_general_dilated(
            x, w, (1, 1), padding, dimension_numbers=layout, precision=self.precision
        )


def _columns_as_channels(x, w):
    """A k x k convolution of few channels as a k x 1 one of k times as many: the same sums, a
    sixth of the time on a CPU for the first layer's 7 x 7 on RGB."""
    k, _, channels, features = w.shape
    width = x.shape[2]
    padded = jnp.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (0, 0)))
    shifted = [padded[:, :, start : start + width] for start in range(k)]
    return jnp.concatenate(shifted, axis=-1), w.reshape(k, 1, k * channels, features)


class ResPath(nn.Module):
    """ReLU and convolution, once per kernel size; all but the last have features / 4 channels."""

    features: int
    kernel_sizes: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        last = len(self.kernel_sizes)
        for number, kernel_size in enumerate(self.kernel_sizes, start=1):
            features = self.features if number == last else self.features // 4
            conv = Conv(features, kernel_size, self.dtype, name=f"conv_{number}")
            x = conv(jax.nn.relu(x))
        return x


class Block(nn.Module):
    """Residual bottleneck: skip(x) + post_gain * branch(x), float32; skip is a 1x1 conv or nothing.
    """

    features: int
    kernel_sizes: tuple[int, ...]
    post_gain: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branch = ResPath(self.features, self.kernel_sizes, self.dtype, name="res_path")(x)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.dtype, name="id_path")(x)
        return x.astype(jnp.float32) + self.post_gain * branch.astype(jnp.float32)


class Group(nn.Module):
    """`num_blocks` blocks of equal width. Names: block_1, block_2, ..."""

    features: int
    num_blocks: int
    kernel_sizes: tuple[int, ...]
    post_gain: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number in range(1, self.num_blocks + 1):
            block = Block(
                self.features, self.kernel_sizes, self.post_gain, self.dtype, name=f"block_{number}"
            )
            x = block(x)
        return x


class Output(nn.Module):
    """ReLU and a 1x1 convolution in float32: argmax and likelihood need its last digits."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv(self.features, 1, precision="highest", name="conv")(jax.nn.relu(x))


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 maximum, stride 2: [b, h, w, c] -> [b, h/2, w/2, c]; h and w even."""
    b, h, w, c = x.shape  # a reshape: select-and-scatter, nn.max_pool's gradient, is slow on CPUs
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour, factor 2: [b, h, w, c] -> [b, 2h, 2w, c]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class EncoderBlocks(nn.Module):
    """The level `blocks` of the original names; see DvaeEncoder."""

    vocab_size: int
    n_hid: int
    num_groups: int
    blocks_per_group: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        post_gain = 1 / (self.num_groups * self.blocks_per_group) ** 2
        x = Conv(self.n_hid, 7, self.dtype, name="input")(x).astype(jnp.float32)
        for g in range(self.num_groups):
            features = self.n_hid * 2**g
            x = Group(
                features, self.blocks_per_group, (3, 3, 3, 1), post_gain, self.dtype,
                name=f"group_{g + 1}",
            )(x)  # fmt: skip
            if g + 1 < self.num_groups:  # the last group has no pool: four groups make a factor 8
                x = max_pool(x)
        return Output(self.vocab_size, name="output")(x)


class DecoderBlocks(nn.Module):
    """The level `blocks` of the original names; see DvaeDecoder."""

    vocab_size: int
    n_hid: int
    n_init: int
    num_groups: int
    blocks_per_group: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        post_gain = 1 / (self.num_groups * self.blocks_per_group) ** 2
        x = CodeEmbedding(self.vocab_size, self.n_init, name="input")(codes)
        for g in range(self.num_groups):
            features = self.n_hid * 2 ** (self.num_groups - 1 - g)
            x = Group(
                features, self.blocks_per_group, (1, 3, 3, 3), post_gain, self.dtype,
                name=f"group_{g + 1}",
            )(x)  # fmt: skip
            if g + 1 < self.num_groups:
                x = upsample(x)
        return Output(CHANNELS_OUT, name="output")(x)


class CodeEmbedding(nn.Module):
    """The decoder's first 1x1 convolution, float32.

    Integer codes [b, gh, gw] are looked up, relaxed or one-hot codes [b, gh, gw, v] multiplied;
    both give [b, gh, gw, n_init].
    """

    vocab_size: int
    n_init: int

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        shape = (1, 1, self.vocab_size, self.n_init)
        w = self.param("w", nn.initializers.variance_scaling(1.0, "fan_in", "normal"), shape)
        b = self.param("b", nn.initializers.zeros, (self.n_init,))
        if jnp.issubdtype(codes.dtype, jnp.integer):
            return jnp.take(w[0, 0], codes, axis=0) + b
        return jnp.matmul(codes.astype(jnp.float32), w[0, 0], precision="highest") + b


class DvaeEncoder(nn.Module):
    """Mapped pixels [b, h, w, 3] in [0.1, 0.9] -> logits over codes, float32 [b, h/f, w/f, v].

    f = 2 ** (num_groups - 1): 8 for the published four groups. h and w must be multiples of f.

    Attributes:
      vocab_size: number of codes v.
      n_hid: channels of the first group; each further group has twice as many.
      num_groups: groups of blocks; all but the last end in a 2x2 max-pool. Published: 4.
      blocks_per_group: residual blocks in a group; with num_groups it sets the branch gain,
        1 / (num_groups * blocks_per_group)^2.
      dtype: of the convolutions; sums over blocks and the output layer are float32 always.
    Source: dall_e/encoder.py (n_blk_per_group = blocks_per_group).
    """

    vocab_size: int = 8192
    n_hid: int = 256
    num_groups: int = 4
    blocks_per_group: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mapped: jax.Array) -> jax.Array:
        return EncoderBlocks(
            self.vocab_size, self.n_hid, self.num_groups, self.blocks_per_group, self.dtype,
            name="blocks",
        )(mapped)  # fmt: skip


class DvaeDecoder(nn.Module):
    """Codes -> parameters of the pixels' distribution, float32 [b, h, w, 6]: mu, then ln b.

    codes: int [b, gh, gw], or relaxed or one-hot float [b, gh, gw, v]; h = gh * f, w = gw * f.

    Attributes: as DvaeEncoder (n_hid: channels of the last group), and
      n_init: width of the code embedding. Published: 128.
    Source: dall_e/decoder.py.
    """

    vocab_size: int = 8192
    n_hid: int = 256
    n_init: int = 128
    num_groups: int = 4
    blocks_per_group: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        return DecoderBlocks(
            self.vocab_size, self.n_hid, self.n_init, self.num_groups, self.blocks_per_group,
            self.dtype, name="blocks",
        )(codes)  # fmt: skip


class Dvae(nn.Module):
    """Encoder and decoder under `encoder/` and `decoder/`. Attributes: as DvaeDecoder."""

    vocab_size: Count = 8192
    n_hid: Annotated[int, within(4)] = 256
    n_init: Count = 128
    num_groups: Annotated[int, within(1, 10)] = 4
    blocks_per_group: Count = 2
    dtype: Any = jnp.float32

    def setup(self):
        shared = dict(
            vocab_size=self.vocab_size, n_hid=self.n_hid, num_groups=self.num_groups,
            blocks_per_group=self.blocks_per_group, dtype=self.dtype,
        )  # fmt: skip
        self.encoder = DvaeEncoder(**shared)
        self.decoder = DvaeDecoder(n_init=self.n_init, **shared)

    def encode(self, mapped: jax.Array) -> jax.Array:
        """Mapped pixels [b, h, w, 3] -> logits [b, h/f, w/f, v]."""
        return self.encoder(mapped)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Integer, relaxed or one-hot codes -> statistics [b, h, w, 6]."""
        return self.decoder(codes)

    def __call__(self, mapped: jax.Array) -> jax.Array:
        """Mapped pixels -> statistics by way of softmax codes; used to create the parameters."""
        return self.decode(jax.nn.softmax(self.encode(mapped)))


def downsampling(num_groups: int) -> int:
    """Pixels per code along each side: 8 for four groups."""
    return 2 ** (num_groups - 1)


def check_image_px(height: int, width: int, num_groups: int) -> None:
    """Raises ValueError unless both sides are multiples of the downsampling factor."""
    factor = downsampling(num_groups)
    if height % factor or width % factor:
        raise ValueError(
            f"a dVAE with {num_groups} groups needs images whose sides are multiples of {factor}; "
            f"got {height}x{width}; nearest: {max(1, height // factor) * factor}x"
            f"{max(1, width // factor) * factor}"
        )

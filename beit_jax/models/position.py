"""Position tables: relative position bias and its index matrix."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np


def num_relative_distances(grid: tuple[int, int]) -> int:
    """Rows of a relative position table: all offsets of the grid, and three for the class token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def relative_position_index(grid: tuple[int, int]) -> np.ndarray:
    """Which row of the bias table belongs to query i and key j.

    Args:
      grid: patch grid (rows, columns).
    Returns: int32 [n + 1, n + 1], n = rows * columns; token 0 is the class token. The last three
      table rows are class -> patch, patch -> class and class -> class.
    Source: BEiT; microsoft/unilm beit/modeling_finetune.py, RelativePositionBias.
    """
    rows, columns = grid
    y, x = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    dy = y[:, None] - y[None, :] + rows - 1
    dx = x[:, None] - x[None, :] + columns - 1
    total = num_relative_distances(grid)
    index = np.empty((rows * columns + 1,) * 2, np.int32)
    index[1:, 1:] = dy * (2 * columns - 1) + dx
    index[0, :] = total - 3
    index[:, 0] = total - 2
    index[0, 0] = total - 1
    return index


def gather_bias(table, grid: tuple[int, int]):
    """Bias of the attention logits. table: [t, a] -> [1, a, n + 1, n + 1]."""
    bias = jnp.take(table, relative_position_index(grid), axis=0)  # [n + 1, n + 1, a]
    return jnp.transpose(bias, (2, 0, 1))[None]


class RelativePositionBias(nn.Module):
    """A table that all blocks share; zeros at the start. Returns [1, a, n + 1, n + 1]."""

    grid: tuple[int, int]
    num_heads: int

    @nn.compact
    def __call__(self):
        table = self.param("relative_position_bias_table", nn.initializers.zeros,
                           (num_relative_distances(self.grid), self.num_heads))
        return gather_bias(table, self.grid)


def sincos_table(width: int, grid: tuple[int, int]) -> np.ndarray:
    """Fixed absolute positions: float32 [1, rows * columns + 1, width], the class token's are 0.

    The first half of a vector tells the column, the second the row; in each half all sines stand
    before all cosines, at frequencies 10000 ** (-i / (width / 4)).
    Raises: ValueError: the width is no multiple of 4.
    Source: MAE; facebookresearch/mae util/pos_embed.py. Rows first would fit the name of the
      variable there, and no checkpoint.
    """
    if width % 4:
        raise ValueError(f"width={width} is no multiple of 4: sine-cosine positions need one")
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = (axis.ravel()[:, None] * frequency for axis in np.mgrid[:grid[0], :grid[1]])
    patches = np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
    table = np.concatenate([np.zeros((1, width)), patches])
    return table[None].astype(np.float32)


def sincos_init(grid: tuple[int, int]):
    """Initialiser of a table [1, n + 1, d] of `sincos_table`."""
    def init(key, shape, dtype=jnp.float32):
        del key
        return jnp.asarray(sincos_table(shape[-1], grid), dtype)

    return init

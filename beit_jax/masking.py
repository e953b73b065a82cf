"""Which patches are hidden: blocks of BEiT, blocks topped up to an exact count, single patches,
square cells of patches.

All draws are functions of a key alone, so masks need no state and are the same on every host.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from beit_jax.options import Count, Positive

KINDS = ("block", "block_exact", "random")
_OF_BLOCKS = ("min_block", "max_block", "min_aspect", "max_aspect")
_UNREAD = {"random": _OF_BLOCKS, "block": ("cell",), "block_exact": ("cell",),
           "none": ("num_masked", *_OF_BLOCKS, "cell")}
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class MaskOptions:
    """config.mask; see `batched_mask`. kind "none" hides nothing (ablation).

    Attributes:
      num_masked: patches to hide.
      min_block, max_block: areas of blocks, in patches.
      min_aspect, max_aspect: height over width of blocks; max_aspect None: 1 / min_aspect.
      cell: side in patches of the squares that kind "random" hides as wholes: 1 hides single
        patches, 2 of 16 px hides cells of 32 px (Img2Vec, SimMIM).
    """

    kind: Literal[*KINDS, "none"] = "block"
    num_masked: Count = 75
    min_block: Count = 16
    max_block: Count | None = None
    min_aspect: Positive = 0.3
    max_aspect: Positive | None = None
    cell: Count = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _UNREAD.get(self.kind, ()) and value != field.default:
                raise ValueError(f"mask.{field.name}={value} has no effect here: mask.kind="
                                 f"{self.kind} does not read it; remove it, or leave it at "
                                 f"{field.default}")

        if self.max_block is not None and self.max_block < self.min_block:
            raise ValueError(f"config.mask.max_block={self.max_block} must be at least "
                             f"mask.min_block={self.min_block}")
        if self.min_aspect > (self.max_aspect or 1.0 / self.min_aspect):
            raise ValueError(f"config.mask.min_aspect={self.min_aspect} must be at most "
                             f"mask.max_aspect={self.max_aspect}; where that is None, at most 1")

    def check(self, grid: tuple[int, int]) -> None:
        """Refuses a grid that these masks do not fit. Raises: ValueError."""
        if self.kind != "none":
            check_counts(grid, self.num_masked, 1 if self.kind == "random" else self.min_block)
        if self.cell < 1 or any(side % self.cell for side in grid):
            raise ValueError(f"mask.cell={self.cell} does not divide the grid of {grid[0]}x"
                             f"{grid[1]} patches")
        if self.num_masked % self.cell ** 2:
            raise ValueError(
                f"mask.num_masked={self.num_masked} patches are no whole number of cells of "
                f"{self.cell}x{self.cell}; nearest: "
                f"{max(self.num_masked // self.cell ** 2, 1) * self.cell ** 2}")

    def draw(self, keys, grid: tuple[int, int]):
        """One mask per key [b]: is_masked bool [b, n]."""
        if self.kind == "none":
            return jnp.zeros((keys.shape[0], grid[0] * grid[1]), bool)
        return batched_mask(keys, grid, **dataclasses.asdict(self))

    def draw_for(self, index, grid: tuple[int, int]):
        """A mask per example number int [b], the same at every evaluation: bool [b, n]."""
        return self.draw(keys_of(index), grid)


def keys_of(index):
    """A PRNG key per example number int [b], the same at every evaluation."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(0), number))(index)


def check_counts(grid: tuple[int, int], num_masked: int, min_block: int) -> None:
    """Refuses settings that cannot be met or leave nothing to predict or to see.

    Raises: ValueError: naming the values.
    """
    n = grid[0] * grid[1]
    if not 0 < num_masked < n:
        raise ValueError(f"mask.num_masked={num_masked} must lie between 1 and {n - 1}: the image "
                         f"has {grid[0]}x{grid[1]} = {n} patches")
    if not 0 < min_block <= num_masked:
        raise ValueError(f"mask.min_block={min_block} must lie between 1 and "
                         f"mask.num_masked={num_masked}: no block would ever fit")


def block_mask(key, grid: tuple[int, int], num_masked: int, *, min_block: int = 16,
               max_block: int | None = None, min_aspect: float = 0.3,
               max_aspect: float | None = None):
    """Hides rectangular blocks of patches until `num_masked` are hidden, or none fits any more.

    Args:
      key: PRNG key; the same key gives the same mask on every host.
      grid: patch grid (rows, columns): (14, 14) for 224 px at patch size 16.
      num_masked: most patches to hide, 0 < num_masked < rows * columns.
      min_block, max_block: areas of blocks drawn, in patches; max_block None: num_masked.
      min_aspect, max_aspect: height over width; max_aspect None: 1 / min_aspect.
    Returns: is_masked bool [n], row-major, True where hidden; often fewer than num_masked (about
      two thirds of the draws of 75 in 14x14 reach it), never more.
    Raises: ValueError: num_masked or min_block is out of range.
    Source: BEiT, Alg. 1, in the form of microsoft/unilm beit/masking_generator.py: the aspect is
      log-uniform, each block has ten attempts, and a block without success ends the mask.
    """
    check_counts(grid, num_masked, min_block)
    rows, columns = grid
    max_block = max_block or num_masked
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)[None, :]
    low, high = math.log(min_aspect), math.log(max_aspect or 1.0 / min_aspect)

    def unfinished(carry):
        _, count, attempt, _ = carry
        return (count < num_masked) & (attempt < _ATTEMPTS)

    def try_one_block(carry):
        is_masked, count, attempt, draw = carry
        u = jax.random.uniform(jax.random.fold_in(key, draw), (4,))
        room = jnp.minimum(num_masked - count, max_block)
        # room < min_block turns the interval round, as in the original: areas between the two
        area = min_block + u[0] * (room - min_block)
        aspect = jnp.exp((2.0 * u[1] - 1.0) * ((high - low) / 2) + (high + low) / 2)
        height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
        width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
        top = jnp.floor(u[2] * (rows - height + 1)).astype(jnp.int32)
        left = jnp.floor(u[3] * (columns - width + 1)).astype(jnp.int32)
        inside = ((row >= top) & (row < top + height)
                  & (column >= left) & (column < left + width))
        new = jnp.sum(inside & ~is_masked)
        fits = (height < rows) & (width < columns) & (new > 0) & (new <= room)
        return (jnp.where(fits, is_masked | inside, is_masked), count + jnp.where(fits, new, 0),
                jnp.where(fits, 0, attempt + 1), draw + 1)

    start = (jnp.zeros(grid, bool), jnp.int32(0), jnp.int32(0), jnp.int32(0))
    return jax.lax.while_loop(unfinished, try_one_block, start)[0].reshape(-1)


def top_up(key, is_masked, num_masked: int):
    """Hides single patches, drawn uniformly, until exactly `num_masked` are hidden.

    Args:
      is_masked: bool [n] with at most num_masked True.
    Returns: bool [n].
    Source: microsoft/unilm beit2/masking_generator.py.
    """
    order = jnp.argsort(jnp.where(is_masked, -1.0, jax.random.uniform(key, is_masked.shape)))
    return jnp.zeros_like(is_masked).at[order[:num_masked]].set(True)


def random_mask(key, grid: tuple[int, int], num_masked: int):
    """Hides `num_masked` patches drawn uniformly without replacement. Returns bool [n]."""
    check_counts(grid, num_masked, 1)
    return top_up(key, jnp.zeros(grid[0] * grid[1], bool), num_masked)


def refine(is_masked, grid: tuple[int, int], factor: int):
    """A mask of cells as a mask of the patches in them.

    Args: is_masked: bool [..., n] of `grid`; factor: patches per side of a cell.
    Returns: bool [..., n * factor ** 2], row-major.
    """
    if factor == 1:
        return is_masked
    cells = is_masked.reshape(*is_masked.shape[:-1], *grid)
    patches = jnp.repeat(jnp.repeat(cells, factor, axis=-1), factor, axis=-2)
    return patches.reshape(*is_masked.shape[:-1], -1)


def coarsen(is_masked, grid: tuple[int, int], factor: int):
    """Undoes `refine` for a mask of patches on `grid` that hides whole cells: bool [..., k]."""
    if factor == 1:
        return is_masked
    patches = is_masked.reshape(*is_masked.shape[:-1], *grid)
    return patches[..., ::factor, ::factor].reshape(*is_masked.shape[:-1], -1)


def batched_mask(keys, grid: tuple[int, int], *, kind: str, num_masked: int, min_block: int = 16,
                 max_block: int | None = None, min_aspect: float = 0.3,
                 max_aspect: float | None = None, cell: int = 1):
    """One mask per key.

    Args:
      keys: PRNG keys [b].
      kind: "block" (up to num_masked), "block_exact" (blocks, then single patches up to exactly
        num_masked), "random".
      cell: side in patches of the squares that "random" hides as wholes.
    Returns: is_masked bool [b, n].
    Raises: ValueError: an unknown kind, or counts out of range.
    """
    def one(key):
        if kind == "random":
            cells = (grid[0] // cell, grid[1] // cell)
            return refine(random_mask(key, cells, num_masked // cell ** 2), cells, cell)
        block_key, single_key = jax.random.split(key)
        is_masked = block_mask(block_key, grid, num_masked, min_block=min_block,
                               max_block=max_block, min_aspect=min_aspect, max_aspect=max_aspect)
        return is_masked if kind == "block" else top_up(single_key, is_masked, num_masked)

    if kind not in KINDS:
        raise ValueError(f"mask.kind={kind!r} is none of {', '.join(KINDS)}")
    return jax.vmap(one)(keys)


def masked_positions(is_masked, num_positions: int):
    """Indices of the hidden patches in a fixed number of slots.

    Args:
      is_masked: bool [b, n].
      num_positions: slots m; at least the largest number of hidden patches.
    Returns: positions int32 [b, m], ascending among the hidden; is_hidden bool [b, m], False in
      slots that no hidden patch fills.
    """
    positions = jnp.argsort(~is_masked, axis=1, stable=True)[:, :num_positions]
    return positions, jnp.take_along_axis(is_masked, positions, axis=1)


def grey_out(image, is_masked, grid: tuple[int, int]):
    """Images beside the same images with their hidden patches grey.

    Args: image: uint8 [b, h, w, 3]; is_masked: bool [b, n]; grid: (rows, columns) of patches.
    Returns: uint8 [b, h, 2 w, 3].
    """
    hidden = as_pixels(is_masked, grid, image.shape[1:3])
    return jnp.concatenate([image, jnp.where(hidden, jnp.uint8(128), image)], axis=2)


def as_pixels(is_masked, grid: tuple[int, int], size: tuple[int, int]):
    """A mask of patches as one of pixels: bool [b, n] -> [b, h, w, 1], size = (h, w)."""
    hidden = is_masked.reshape(-1, *grid)
    for axis in (1, 2):
        hidden = jnp.repeat(hidden, size[axis - 1] // grid[axis - 1], axis)
    return hidden[..., None]

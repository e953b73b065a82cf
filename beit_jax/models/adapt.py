"""Checkpoint surgery: what changes between two stages of a recipe, as named pure functions.

Each takes (loaded, target), flat dicts from paths ("blocks/attn/qkv/kernel") to arrays, where the
leaves of `target` need only a shape, and returns a new `loaded`. A config lists them by name, in
order: config.init.adapt = ("drop_head", "expand_rel_pos_bias", "resize_rel_pos_bias").
"""

import functools

import numpy as np
from scipy.interpolate import RectBivariateSpline

SHARED_TABLE = "rel_pos_bias/relative_position_bias_table"
BLOCK_TABLES = "blocks/attn/relative_position_bias_table"
POSITIONS = "pos_embed"
IMAGE_POSITIONS = "embed_positions/A/embedding"
ENCODER = "encoder/"
# what stands before the blocks or in each: a network without one that a checkpoint has computes
# something else than what was trained
INPUTS = ("patch_embed", "cls_token", "register_tokens", "pos_embed", "rel_pos_bias", "pre_norm")
_CLASS_ROWS = 3


def expand_rel_pos_bias(loaded: dict, target: dict) -> dict:
    """Gives every block a copy of the table that all blocks shared in pre-training.

    Does nothing if the target has no tables per block, or the checkpoint no shared table.
    Source: BEiT, fine-tuning; microsoft/unilm beit/run_class_finetuning.py.
    """
    if BLOCK_TABLES not in target or SHARED_TABLE not in loaded:
        return loaded
    loaded = dict(loaded)
    table = np.asarray(loaded.pop(SHARED_TABLE))  # [t, a]
    depth = target[BLOCK_TABLES].shape[0]
    return loaded | {BLOCK_TABLES: np.repeat(table[None], depth, axis=0)}


def resize_rel_pos_bias(loaded: dict, target: dict) -> dict:
    """Interpolates relative position tables, shared or per block, to the target's grid."""
    loaded = dict(loaded)
    for path in (SHARED_TABLE, BLOCK_TABLES):
        if path not in loaded or path not in target:
            continue
        rows = target[path].shape[-2]
        table = np.asarray(loaded[path])
        if table.shape[-2] == rows:
            continue
        tables = table.reshape(-1, *table.shape[-2:])
        resized = np.stack([interpolate_rel_pos_table(one, rows) for one in tables])
        loaded[path] = resized.reshape(*table.shape[:-2], rows, table.shape[-1])
    return loaded


def resize_pos_embed(loaded: dict, target: dict) -> dict:
    """Interpolates learned absolute positions to the target's grid; the class token's is kept."""
    return _resize_positions(loaded, target, bicubic_matrix)


def resize_pos_embed_offset(loaded: dict, target: dict) -> dict:
    """As resize_pos_embed, with the coordinates of DINO and BEiT v2 (DINO, CLIP, VQ-KD).

    Source: facebookresearch/dino vision_transformer.py; microsoft/unilm beit2/. Both resize on the
      fly, by the factor (tokens per side + 0.1) / (trained tokens per side).
    """
    return _resize_positions(loaded, target, functools.partial(bicubic_matrix, offset=0.1))


def resize_pos_embed_antialias(loaded: dict, target: dict) -> dict:
    """As resize_pos_embed, but with antialiasing (DINOv2 with registers).

    Source: facebookresearch/dinov2 dinov2/hub/backbones.py, where these models have
      interpolate_antialias=True and interpolate_offset=0.0; those without have DINO's rule.
    """
    return _resize_positions(loaded, target, antialias_matrix)


def _resize_positions(loaded: dict, target: dict, matrix) -> dict:
    """Resizes every table called pos_embed, of the network or of a part of it, that needs it."""
    resized = {}
    for path, table in loaded.items():
        if path.split("/")[-1] == POSITIONS and path in target:
            tokens = target[path].shape[1]
            if np.shape(table)[1] != tokens:
                resized[path] = interpolate_pos_embed(np.asarray(table), tokens, matrix)
    return loaded | resized


def resize_image_positions(loaded: dict, target: dict) -> dict:
    """Interpolates BEiT-3's image positions; two rows without use and the class token's are kept.

    Source: microsoft/unilm beit3/utils.py. Text positions have no grid and are never resized.
    """
    if not {IMAGE_POSITIONS} <= loaded.keys() & target.keys():
        return loaded
    table, rows = np.asarray(loaded[IMAGE_POSITIONS]), target[IMAGE_POSITIONS].shape[0]
    if len(table) == rows:
        return loaded
    unread = table[:2].astype(np.float32)
    resized = interpolate_pos_embed(table[None, 2:], rows - 2)[0]
    return loaded | {IMAGE_POSITIONS: np.concatenate([unread, resized])}


def take_vision(loaded: dict, target: dict) -> dict:
    """Keeps BEiT-3's experts for images alone, for a network with modalities="vision"."""
    return {path: leaf for path, leaf in loaded.items()
            if "B" not in path.split("/") and not path.startswith("text_embed/")}


def drop_head(loaded: dict, target: dict) -> dict:
    """Drops a classifier whose number of classes differs from the target's."""
    def fits(path):
        return path not in target or np.shape(loaded[path]) == tuple(target[path].shape)

    if all(fits(path) for path in ("head/kernel", "head/bias") if path in loaded):
        return loaded
    return {path: leaf for path, leaf in loaded.items() if not path.startswith("head/")}


def take_encoder(loaded: dict, target: dict) -> dict:
    """Keeps the encoder of a tokenizer (VQ-KD) alone, as a backbone of its own.

    Its `fc_norm` comes along: in a classifier it normalises the mean of the patches, not each.
    Source: BEiT v2, Table 6; microsoft/unilm beit2/run_class_finetuning.py.
    """
    return {path.removeprefix(ENCODER): leaf for path, leaf in loaded.items()
            if path.startswith(ENCODER)}


ADAPT = {
    "drop_head": drop_head,
    "expand_rel_pos_bias": expand_rel_pos_bias,
    "resize_image_positions": resize_image_positions,
    "resize_pos_embed": resize_pos_embed,
    "resize_pos_embed_antialias": resize_pos_embed_antialias,
    "resize_pos_embed_offset": resize_pos_embed_offset,
    "resize_rel_pos_bias": resize_rel_pos_bias,
    "take_encoder": take_encoder,
    "take_vision": take_vision,
}


def geometric_coordinates(source_side: int, target_side: int) -> np.ndarray:
    """Where the source's offsets lie on the target's axis: dense near zero, spreading outwards.

    Args:
      source_side, target_side: rows of the square tables, 2 * grid - 1.
    Returns: float64 [source_side], 0 in the middle and +- the partial sums 1, 1 + q, 1 + q + q^2,
      ...; q between 1.01 and 1.5 is found by bisection so that the last sum meets target_side // 2.
    Source: microsoft/unilm beit/run_class_finetuning.py.
    """
    n, reach = source_side // 2, target_side // 2
    low, high = 1.01, 1.5
    ratio = high
    while high - low > 1e-6:
        ratio = (low + high) / 2.0
        if (1.0 - ratio**n) / (1.0 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    sums = np.cumsum(ratio ** np.arange(n))
    return np.concatenate([-sums[::-1], [0.0], sums])


def interpolate_rel_pos_table(table: np.ndarray, rows: int) -> np.ndarray:
    """A relative position table for another square grid.

    Args:
      table: [t, a], t = s * s + 3 with s = 2 * grid - 1; the three class rows come last.
      rows: rows wanted, of the same form.
    Returns: float32 [rows, a]: cubic spline at geometric coordinates, clamped to the source's
      range; the class rows unchanged.
    Raises: ValueError: either table does not belong to a square grid.
    Source: as geometric_coordinates; linear interpolation costs much accuracy (unilm issue 376).
    """
    source_side, target_side = (_table_side(n) for n in (table.shape[0], rows))
    if source_side == target_side:
        return np.asarray(table, np.float32)
    source = geometric_coordinates(source_side, target_side)
    reach = target_side // 2
    wanted = np.clip(np.arange(-reach, reach + 1.0), source[0], source[-1])
    degree = min(3, source_side - 1)
    heads = [
        RectBivariateSpline(source, source, column.reshape(source_side, source_side),
                            kx=degree, ky=degree, s=0)(wanted, wanted).ravel()
        for column in np.asarray(table[:-_CLASS_ROWS], np.float64).T
    ]
    resized = np.stack(heads, axis=-1)
    return np.concatenate([resized, table[-_CLASS_ROWS:]]).astype(np.float32)


def _table_side(rows: int) -> int:
    side = round((rows - _CLASS_ROWS) ** 0.5)
    if side * side != rows - _CLASS_ROWS or side % 2 == 0:
        raise ValueError(f"a relative position table of {rows} rows belongs to no square grid: "
                         "only square grids can be interpolated")
    return side


def interpolate_pos_embed(table: np.ndarray, tokens: int, matrix=None) -> np.ndarray:
    """Absolute positions for another square grid, each side resampled alike.

    Args:
      table: [1, n + 1, d], class token first.
      tokens: tokens wanted, the class token included.
      matrix: (source, target) -> weights [target, source]; None: `bicubic_matrix`.
    Returns: float32 [1, tokens, d].
    Raises: ValueError: either grid is not square.
    """
    source, target = (_grid_side(n - 1) for n in (table.shape[1], tokens))
    grid = np.asarray(table[0, 1:], np.float64).reshape(source, source, -1)
    weights = (matrix or bicubic_matrix)(source, target)
    resized = np.einsum("is,jt,std->ijd", weights, weights, grid)
    patches = resized.reshape(1, target * target, -1)
    return np.concatenate([table[:, :1], patches], axis=1).astype(np.float32)


def _grid_side(patches: int) -> int:
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"{patches} positions form no square grid: only square grids can be "
                         "interpolated")
    return side


def bicubic_matrix(source: int, target: int, offset: float = 0.0) -> np.ndarray:
    """Weights [target, source] of 1-d bicubic resampling: a = -0.75, half-pixel centres, edges
    repeated, no antialiasing.

    offset: added to `target` in the step of the coordinates, source / (target + offset), not in the
      number of points; DINO's 0.1 shifts all of them a little towards the first.
    Source: PyTorch's interpolate(mode="bicubic"), which the originals call.
    """
    centre = (np.arange(target) + 0.5) * source / (target + offset) - 0.5
    base = np.floor(centre).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        columns = np.clip(base + tap, 0, source - 1)
        np.add.at(matrix, (np.arange(target), columns), _cubic(centre - (base + tap), -0.75))
    return matrix


def antialias_matrix(source: int, target: int) -> np.ndarray:
    """Weights [target, source] of 1-d bicubic resampling with antialiasing: a = -0.5, the kernel
    as much wider as the grid shrinks, weights beyond the edges shared out among the others.

    Source: PyTorch's interpolate(mode="bicubic", antialias=True); jax.image.resize's "cubic".
    """
    step = source / target
    centre = (np.arange(target) + 0.5) * step - 0.5
    matrix = _cubic((centre[:, None] - np.arange(source)) / max(step, 1.0), -0.5)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel, zero from distance 2 on."""
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))

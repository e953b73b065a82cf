"""Drawing of `digit_scenes`: colour scenes out of the handwritten digits inside scikit-learn.

Pure numpy: neither TensorFlow nor JAX is needed, so that experiments can draw what they like. The
TFDS data set made of these scenes is in `digit_scenes_builder.py`, the sentences in
`scene_text.py`.
"""
import dataclasses
import functools

import numpy as np

SPLITS = ("train", "validation")
# (name, RGB in [0, 1]); saturated and of middling lightness, so that every one stands out
# from a grey background by its hue.
COLORS = (
    ("red", (0.85, 0.15, 0.15)),
    ("green", (0.20, 0.75, 0.25)),
    ("blue", (0.20, 0.35, 0.95)),
    ("yellow", (0.95, 0.88, 0.20)),
    ("purple", (0.62, 0.20, 0.75)),
    ("orange", (0.98, 0.55, 0.10)),
)
TONES = ("light", "dark")  # what stands for a colour where digits are almost grey
_CHUNK = 512  # scenes drawn at once; the first n scenes never depend on how many are asked for
_PAD, _ZOOM = 2, 4  # empty cells around the 8x8 glyphs, and how finely they are interpolated


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes look like. Sizes in pixels, colours and lightness in [0, 1].

    Attributes:
      image_px: side of the square image.
      min_digits, max_digits: digits in a scene; at most 4, each in a quarter of the image of its
        own unless there is only one.
      digit_px: smallest and largest side of the square that an 8x8 handwriting is drawn on.
      background: "gradient" (two near-grey colours) or "photo" (crops of two photographs).
      vivid: True gives digits one of `COLORS`; False makes them almost grey, lighter or darker
        than the background by `contrast`.
      contrast: smallest and largest difference of lightness, for almost grey digits.
      darker_share: probability that an almost grey digit is darker than the background, where
        there is room for both.
      lightness: darkest and lightest mean of a gradient background.
      tint: standard deviation of each colour channel around its mean.
      rotation_degrees, shear, stretch: largest change of a handwriting's shape; the stretch is
        the logarithm of width over height.
      stroke: smallest and largest threshold at which ink begins: small means bold.
    """
    image_px: int = 32
    min_digits: int = 1
    max_digits: int = 1
    digit_px: tuple[float, float] = (20.0, 29.0)
    background: str = "gradient"
    vivid: bool = False
    contrast: tuple[float, float] = (0.35, 0.65)
    darker_share: float = 0.5
    lightness: tuple[float, float] = (0.1, 0.9)
    tint: float = 0.03
    rotation_degrees: float = 15.0
    shear: float = 0.2
    stretch: float = 0.2
    stroke: tuple[float, float] = (0.35, 0.55)


CONFIGS = {
    # easy on purpose: one size, one place, light on dark; see docs/beit.md for what that buys
    "plain": SceneConfig(digit_px=(28.0, 31.0), darker_share=0.0, lightness=(0.15, 0.25), tint=0.02,
                         contrast=(0.5, 0.6), rotation_degrees=8.0, shear=0.1, stretch=0.1),
    "varied": SceneConfig(),
    "multi": SceneConfig(image_px=64, min_digits=2, max_digits=4, digit_px=(16.0, 31.0),
                         vivid=True, lightness=(0.3, 0.6)),
    # "multi" as easy as "plain": digits that fill their quarters, all brighter than what is behind
    "tiles": SceneConfig(image_px=64, min_digits=2, max_digits=4, digit_px=(28.0, 31.0),
                         vivid=True, lightness=(0.05, 0.15), tint=0.02, rotation_degrees=8.0,
                         shear=0.1, stretch=0.1),
    "photo": SceneConfig(image_px=64, digit_px=(26.0, 50.0), background="photo", vivid=True),
}


def make_scenes(config: str | SceneConfig, split: str, n: int, seed: int = 0) -> dict:
    """Draws n scenes; the first k of them are the same for every n >= k.

    Args:
      config: a key of `CONFIGS`, or a `SceneConfig`.
      split: "train" or "validation": different handwriting, different parts of the photographs.
      n: number of scenes.
      seed: same seed, same scenes.
    Returns: dict of arrays, s = image_px, k = max_digits; what a slot without a digit holds is -1:
      image uint8 [n, s, s, 3]; segmentation uint8 [n, s, s] (0 background, 1 + digit);
      label int32 [n] (the digit, -1 where a scene may hold several);
      digits int32 [n, k]; colors int32 [n, k], an index of `color_names(config)`;
      sizes float32 [n, k], pixels; centers float32 [n, k, 2] (x, y), pixels;
      handwriting int32 [n, k], the example number in scikit-learn's `load_digits`.
    Raises: ValueError: unknown config or split, or n < 1.
    """
    config = find_config(config)
    if split not in SPLITS:
        raise ValueError(f"digit_scenes has no split {split!r}; known: {', '.join(SPLITS)}")
    if n < 1:
        raise ValueError(f"make_scenes needs n >= 1 scenes, got {n}")
    chunks = [_draw_chunk(config, split, seed, i) for i in range(-(-n // _CHUNK))]
    return {key: np.concatenate([chunk[key] for chunk in chunks])[:n] for key in chunks[0]}


def find_config(config: str | SceneConfig) -> SceneConfig:
    """The `SceneConfig` of a name. Raises ValueError for an unknown one."""
    if isinstance(config, SceneConfig):
        return config
    if config not in CONFIGS:
        raise ValueError(f"digit_scenes has no variant {config!r}; known: {', '.join(CONFIGS)}")
    return CONFIGS[config]


def color_names(config: str | SceneConfig) -> tuple[str, ...]:
    """Words for the values of `colors`: names of colours, or light and dark."""
    return tuple(name for name, _ in COLORS) if find_config(config).vivid else TONES


@functools.cache
def handwriting_of(split: str) -> np.ndarray:
    """Example numbers of `load_digits` in a split; a fifth of each class is validation."""
    labels = _digits()[1]
    rng = np.random.default_rng(20210615)  # fixed: the split must never move between versions
    members = []
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        held_out = len(order) // 5
        members.append(order[:held_out] if split == "validation" else order[held_out:])
    return np.sort(np.concatenate(members))


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Glyphs float32 [1797, 48, 48] in [0, 1], zoomed smoothly out of 8x8 cells; labels [1797]."""
    from sklearn.datasets import load_digits  # 2 s to import: only where scenes are drawn
    images, labels = load_digits(return_X_y=True)
    cells = np.pad(images.reshape(-1, 8, 8) / 16, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    zoom = _cubic_matrix(cells.shape[1], _ZOOM)
    return np.einsum("yi,nij,xj->nyx", zoom, cells, zoom).astype(np.float32), labels


def _cubic_matrix(n: int, zoom: int) -> np.ndarray:
    """Cubic interpolation (a = -0.5) of n samples at n * zoom places, as a matrix."""
    places = (np.arange(n * zoom) + 0.5) / zoom - 0.5
    x = np.abs(places[:, None] - np.arange(n))
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@functools.cache
def _photos(split: str) -> tuple[np.ndarray, ...]:
    """Left three quarters (train) or right quarter (validation) of the two photographs, uint8."""
    from sklearn.datasets import load_sample_images
    images = load_sample_images().images  # 427 x 640
    cut = images[0].shape[1] * 3 // 4
    return tuple(im[:, :cut] if split == "train" else im[:, cut:] for im in images)


def _draw_chunk(config: SceneConfig, split: str, seed: int, chunk: int) -> dict:
    """One chunk of `_CHUNK` scenes: choose everything, then paint digit over digit."""
    rng = np.random.default_rng([seed, SPLITS.index(split), chunk])
    things = _choose_digits(config, split, rng)
    if config.background == "photo":
        image, lightness = _photo_background(config, split, rng)
    else:
        image, lightness = _gradient_background(config, rng)
    inks, things["colors"] = _choose_inks(config, lightness, things["digits"], rng)
    segmentation = np.zeros(image.shape[:3], np.uint8)
    for slot in range(config.max_digits):
        rows = np.flatnonzero(things["digits"][:, slot] >= 0)
        window, ink = _coverage(config, things, slot, rows, rng)
        behind = image[window]
        image[window] = behind + ink[..., None] * (inks[rows, slot][:, None, None] - behind)
        value = (things["digits"][rows, slot] + 1)[:, None, None]
        segmentation[window] = np.where(ink > 0.5, value, segmentation[window])
    label = things["digits"][:, 0] if config.max_digits == 1 else np.full(_CHUNK, -1, np.int32)
    image = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return {"image": image, "segmentation": segmentation, "label": label, **things}


def _choose_digits(config: SceneConfig, split: str, rng) -> dict:
    """Which handwriting stands where and how large; empty slots hold -1."""
    k, side = config.max_digits, config.image_px
    count = rng.integers(config.min_digits, k + 1, _CHUNK)
    is_there = np.arange(k) < count[:, None]  # [n, k]
    handwriting = rng.choice(handwriting_of(split), (_CHUNK, k))
    sizes = rng.uniform(*config.digit_px, (_CHUNK, k))
    cell = side if k == 1 else side / 2
    slack = np.maximum(cell - sizes, 0)[..., None]
    centers = cell / 2 + rng.uniform(-0.5, 0.5, (_CHUNK, k, 2)) * slack
    if k > 1:  # a quarter of the image each, in random order: digits never hide one another
        quarter = np.argsort(rng.random((_CHUNK, 4)), axis=1)[:, :k]
        centers += cell * np.stack([quarter % 2, quarter // 2], -1)
    return {
        "digits": np.where(is_there, _digits()[1][handwriting], -1).astype(np.int32),
        "sizes": np.where(is_there, sizes, -1).astype(np.float32),
        "centers": np.where(is_there[..., None], centers, -1).astype(np.float32),
        "handwriting": np.where(is_there, handwriting, -1).astype(np.int32),
    }


def _choose_inks(config: SceneConfig, lightness, digits, rng) -> tuple[np.ndarray, np.ndarray]:
    """RGB float32 [n, k, 3] and the index of its name int32 [n, k]."""
    n, k = digits.shape
    noise = config.tint * rng.standard_normal((n, k, 3))
    if config.vivid:
        # Without replacement: "the red digit" then means one digit.
        names = np.argsort(rng.random((n, len(COLORS))), axis=1)[:, :k]
        inks = np.array([rgb for _, rgb in COLORS])[names] + noise
    else:
        contrast = rng.uniform(*config.contrast, (n, k))
        darker = rng.random((n, k)) < config.darker_share
        base = lightness[:, None]
        darker = np.where(base - contrast < 0.02, False, darker)
        darker = np.where(base + contrast > 0.98, True, darker)
        inks = (base + np.where(darker, -contrast, contrast))[..., None] + noise
        names = darker.astype(int)  # an index of TONES
    names = np.where(digits >= 0, names, -1).astype(np.int32)
    return np.clip(inks, 0, 1).astype(np.float32), names


def _gradient_background(config: SceneConfig, rng) -> tuple[np.ndarray, np.ndarray]:
    """Soft ramps between two near-grey colours, [n, s, s, 3], and their mean lightness [n]."""
    lightness = rng.uniform(*config.lightness, _CHUNK)
    ends = lightness[:, None, None] + config.tint * rng.standard_normal((_CHUNK, 2, 3))
    ends += rng.uniform(-0.1, 0.1, (_CHUNK, 1, 1)) * np.array([1, -1])[:, None]
    angle = rng.uniform(0, 2 * np.pi, _CHUNK)[:, None, None]
    axis = np.linspace(-0.5, 0.5, config.image_px)
    ramp = 0.5 + np.cos(angle) * axis + np.sin(angle) * axis[:, None]  # [n, s, s], about [0, 1]
    ramp = np.clip(ramp, 0, 1)[..., None]
    image = ends[:, None, None, 0] + ramp * (ends[:, None, None, 1] - ends[:, None, None, 0])
    return np.clip(image, 0, 1).astype(np.float32), lightness


def _photo_background(config: SceneConfig, split: str, rng) -> tuple[np.ndarray, np.ndarray]:
    """Square windows of the photographs at full resolution, half of them mirrored."""
    side, photos = config.image_px, _photos(split)
    image = np.empty((_CHUNK, side, side, 3), np.float32)
    for i, which in enumerate(rng.integers(0, len(photos), _CHUNK)):
        photo = photos[which]
        top, left = (rng.integers(0, size - side + 1) for size in photo.shape[:2])
        window = photo[top:top + side, left:left + side] / np.float32(255)
        image[i] = window[:, ::-1] if rng.random() < 0.5 else window
    return image, image.mean((1, 2, 3))


def _coverage(config: SceneConfig, things: dict, slot: int, rows, rng) -> tuple[tuple, np.ndarray]:
    """How much ink of one slot's digit lies on each pixel of a window around it.

    rows: int [m], the scenes that have such a digit. Returns the window as an index of
    [n, s, s] arrays, and the ink, float32 [m, w, w] in [0, 1].
    """
    angle, shear, stretch = rng.uniform(-1, 1, (3, _CHUNK))[:, rows]
    angle = np.deg2rad(angle * config.rotation_degrees)
    shear, stretch = shear * config.shear, np.exp(0.5 * stretch * config.stretch)
    begin = rng.uniform(*config.stroke, _CHUNK)[rows].astype(np.float32)[:, None, None]
    centers = things["centers"][rows, slot]
    width = min(config.image_px, int(1.5 * config.digit_px[1]))  # 1.5: the corners, when turned
    corner = np.clip(np.rint(centers - width / 2), 0, config.image_px - width).astype(np.int32)
    x, y = corner[:, :, None].transpose(1, 0, 2) + np.arange(width)  # each [m, w], pixels
    # Inverse map, pixel -> glyph: turn back, shear back, then scale to glyph samples.
    scale = 8 / things["sizes"][rows, slot] * _ZOOM
    cos, sin = np.cos(angle), np.sin(angle)
    to_u = np.stack([cos + shear * sin, sin - shear * cos]) * scale / stretch
    to_v = np.stack([-sin, cos]) * scale * stretch
    dx = (x + 0.5 - centers[:, :1]).astype(np.float32)[:, None, :]
    dy = (y + 0.5 - centers[:, 1:]).astype(np.float32)[:, :, None]
    glyphs = _digits()[0]
    size = glyphs.shape[1]
    u, v = (a[:, None, None] * dx + b[:, None, None] * dy + np.float32((size - 1) / 2)
            for a, b in (to_u.astype(np.float32), to_v.astype(np.float32)))
    u, v = (np.clip(place, 0, size - 1.001) for place in (u, v))  # a glyph's margin is empty
    left, top = u.astype(np.int32), v.astype(np.int32)
    u, v = u - left, v - top
    flat = glyphs.reshape(-1)
    at = (things["handwriting"][rows, slot] * size**2)[:, None, None] + top * size + left
    upper = flat[at] * (1 - u) + flat[at + 1] * u
    lower = flat[at + size] * (1 - u) + flat[at + size + 1] * u
    ink = upper * (1 - v) + lower * v
    ink = np.clip((ink - begin) / 0.3 + 0.5, 0, 1)  # 0.3: about one pixel of soft edge
    return (rows[:, None, None], y[:, :, None], x[:, None, :]), ink

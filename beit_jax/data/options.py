"""What a config says about its data, checked before anything is read."""
import dataclasses
import re

CROPS = ("resized", "resized_once", "pad", "none", "dvae")
FILTERS = ("bilinear", "bicubic", "lanczos3")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """`config.data`. Sizes in pixels.

    Attributes:
      name: "digit_scenes/plain", "/varied", "/multi" or "/photo", "folder", "synthetic", or a
        TFDS name.
      path: folder of images, or TFDS data_dir; for digit_scenes the cache, by default
        $BEIT_JAX_DATA, else ~/.cache/beit_jax.
      train_split, eval_split: what the source calls them.
      holdout_per_class: > 0 takes the last so many training examples of each class for validation.
      examples_per_class: > 0 trains on so many of each class, chosen by `subset_seed`.
      global_batch_size: examples in a step over all processes.
      eval_batch_size: the same for evaluation; 0 = global_batch_size.
      image_px: side of `image`. target_px: side of `image_for_target`; 0 = no second view.
      target_filter: resampling of the second view.
      crop: "resized" (random resized crop), "resized_once" (the same without a second try), "pad"
        (shift by up to 4 pixels, for 32 px), "none" (resize the short side, cut out the middle),
        "dvae" (the tokenizer's own).
      crop_scale, crop_ratio: area fractions and aspects of "resized" and "resized_once".
      interpolation: resampling of the first view: "bilinear", "bicubic", "lanczos3".
      flip: probability of mirroring.
      color_jitter: strength, 0 = off; without effect where RandAugment is on.
      randaugment: "" or "rand-m9-mstd0.5-inc1".
      eval_crop_ratio: evaluation resizes the short side to int(image_px / ratio) and cuts out the
        middle; 0 = 1 for images of at most 32 px or at least 384 px, else 0.875.
      fast: True skips antialiasing and takes the fast inverse DCT: half the cost, other pixels.
      mean, std: normalisation on the device; its mean is RandAugment's fill colour.
      threads: threads for decoding and augmentation; 0 = one for each core.
      synthetic_examples, synthetic_classes: size of the "synthetic" data.
    Raises: ValueError: a value that nothing could be done with.
    """
    name: str
    global_batch_size: int
    image_px: int
    path: str = ""
    train_split: str = "train"
    eval_split: str = "validation"
    holdout_per_class: int = 0
    examples_per_class: int = 0
    subset_seed: int = 0
    eval_batch_size: int = 0
    target_px: int = 0
    target_filter: str = "lanczos3"
    crop: str = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5
    color_jitter: float = 0.0
    randaugment: str = ""
    eval_crop_ratio: float = 0.0
    fast: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    threads: int = 0
    synthetic_examples: int = 64
    synthetic_classes: int = 10

    def __post_init__(self):
        def require(is_right, key, what):
            if not is_right:
                raise ValueError(f"config.data.{key}={getattr(self, key)!r} is wrong: {what}")

        require(self.name, "name", 'name a source: "digit_scenes/plain", "folder", "cifar10"')
        require(self.global_batch_size > 0, "global_batch_size", "it must be positive")
        require(self.image_px > 0, "image_px", "it must be positive")
        for key in ("holdout_per_class", "examples_per_class", "eval_batch_size", "target_px",
                    "threads", "color_jitter"):
            require(getattr(self, key) >= 0, key, "it must not be negative")
        require(self.crop in CROPS, "crop", f"known: {', '.join(CROPS)}")
        for key in ("interpolation", "target_filter"):
            require(getattr(self, key) in FILTERS, key, f"known: {', '.join(FILTERS)}")
        require(self.target_px or self.target_filter == DataOptions.target_filter,
                "target_filter", "it has no effect while target_px=0; remove it")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "crop_scale", "it needs 0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(0 < low <= high, "crop_ratio", "it needs 0 < low <= high")
        require(0 <= self.flip <= 1, "flip", "it is a probability")
        require(0 <= self.eval_crop_ratio <= 1, "eval_crop_ratio", "it lies in 0..1 (0 = choose)")
        require(self.randaugment == "" or re.fullmatch(r"rand(-[a-z]+[0-9.]+)+", self.randaugment),
                "randaugment", 'write e.g. "rand-m9-mstd0.5-inc1"')
        require(min(self.synthetic_examples, self.synthetic_classes) > 0, "synthetic_examples",
                "it and synthetic_classes must be positive")

    @property
    def crop_ratio_at_evaluation(self) -> float:
        """`eval_crop_ratio`, or what 0 stands for."""
        if self.eval_crop_ratio:
            return self.eval_crop_ratio
        return 1.0 if self.image_px <= 32 or self.image_px >= 384 else 0.875


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a source holds: numbers of examples, and the names of its classes, if it has any.

    num_eval is 0 where there is no validation split.
    """
    num_train: int
    num_eval: int
    num_classes: int
    class_names: tuple[str, ...]

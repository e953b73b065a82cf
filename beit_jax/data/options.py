"""What a config says about its data, checked before anything is read."""
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from beit_jax.data.text_ops import Tokenizer
from beit_jax.options import Count, Mean, Natural, NonNegative, Positive, Rule, Share, Std

CROPS = ("resized", "resized_once", "pad", "none", "dvae")
FILTERS = ("bilinear", "bicubic", "lanczos3")
CAPTIONS = ("drawn", "each")
MATCHINGS = ("auto", "written", "normal")
EVAL_RESIZES = ("crop", "squash")
# what randaugment.parse reads: the strengths of "rand" are the increasing ones, inc1
_POLICY = r"((rand(?=.*-inc1(-|$))|vl(?!.*-inc))(-((m|mstd|p)\d+(\.\d+)?|n[1-9]\d?|inc1))+)?"


CropRatio = Annotated[float, Rule(lambda r: r == 0 or 0.1 <= r <= 1, "0, or from 0.1 to 1")]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """`config.data`. Sizes in pixels.

    Attributes:
      name: "digit_scenes/plain", "/varied", "/multi", "/tiles" or "/photo", "folder",
        "synthetic", "karpathy", "pairs", "documents", "vqa", "nlvr2", "index", "mixture", or a
        TFDS name.
      path: folder of images, or TFDS data_dir; for digit_scenes the cache, by default
        $BEIT_JAX_DATA, else ~/.cache/beit_jax.
      train_split, eval_split: what the source calls them; sources with files of texts join
        several: "train+restval".
      holdout_per_class: > 0 takes the last so many training examples of each class for validation.
      examples_per_class: > 0 trains on so many of each class, chosen by `subset_seed`.
      train_examples: > 0 trains on so many examples in all, labelled or not, chosen by
        `subset_seed`: questions, statements, images with their captions or, with captions="each",
        captions.
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
      randaugment: "", "rand-m9-mstd0.5-inc1" or, for images with texts, "vl-m7".
      eval_resize: "crop", or "squash": evaluation resizes the whole image to a square, without
        cutting anything off (BEiT-3's tasks with texts).
      eval_crop_ratio: evaluation resizes the short side to int(image_px / ratio) and cuts out the
        middle; 0 = 1 for images of at most 32 px or at least 384 px, else 0.875.
      fast: True skips antialiasing and takes the fast inverse DCT: half the cost, other pixels.
      mean, std: normalisation on the device; its mean is RandAugment's fill colour.
      max_broken: image files of a split that may break while the run reads them (deleted, cut
        short, not to be read): each is named and left out, another example stands for it; one more
        ends the run. Files that are broken at the start are left out without being counted.
      accept_changed: True goes on with a workdir although the training examples (their number,
        classes, names, sizes, labels or texts) are not those that it was trained with.
      threads: threads for decoding and augmentation; 0 = one for each core.
      synthetic_examples, synthetic_classes: size of the "synthetic" data.
      text_length: tokens of a text with <s> and </s>; 0 = no text is read.
      tokenizer: SentencePiece model file; digit_scenes makes its own where this is "", and "index"
        reads ids without one.
      text: digit_scenes: "captions", "questions", "statements" or "sentences" (texts alone); a
        TFDS name: the feature that holds the texts, "captions/text"; "" = no text.
      captions: "drawn" (an image is an example, with one of its captions drawn at each visit) or
        "each" (every caption is an example); evaluation always gives all captions of an image.
      annotations: file of texts, or index file; "{split}" in it stands for the split, as in `path`
        and `questions`. questions: VQA's questions.
      answers: VQA's list of answers; "" = made of the training splits' annotations, of the
        answers that `answers_min_count` questions have.
      answer_matching: VQA: which of people's answers are those of the list: "written", letter by
        letter; "normal", in normal form (small letters, digits, no articles or punctuation);
        "auto": written with VQAv2's list of 3,129, as the original program does, else normal.
      image_pattern: VQA: file of an image below `path`: "{id}" or "{id:012d}" its id, as it is or
        in 12 digits, "{subset}" the questions' data_subtype, "{split}" the split; "" = COCO's,
        "{subset}/COCO_{subset}_{id:012d}.jpg".
      skip_defects: True leaves out entries with a defect and names them in the log.
      holdout_images: VQA: > 0 keeps so many images of the last training split out of training;
        split "holdout" has their questions.
      streams: "mixture": name of each stream -> its keys of this section, which win over those
        here, and `share`, its part of the batch.
    Raises: ValueError: a value that nothing could be done with.
    """
    name: str
    global_batch_size: Count
    image_px: Count
    path: str = ""
    train_split: str = "train"
    eval_split: str = "validation"
    holdout_per_class: Natural = 0
    examples_per_class: Natural = 0
    train_examples: Natural = 0
    subset_seed: Natural = 0
    eval_batch_size: Natural = 0
    target_px: Natural = 0
    target_filter: Literal[*FILTERS] = "lanczos3"
    crop: Literal[*CROPS] = "resized"
    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Literal[*FILTERS] = "bicubic"
    flip: Share = 0.5
    color_jitter: NonNegative = 0.0
    randaugment: str = ""
    eval_resize: Literal[*EVAL_RESIZES] = "crop"
    eval_crop_ratio: CropRatio = 0.0
    fast: bool = False
    mean: Mean = (0.5, 0.5, 0.5)
    std: Std = (0.5, 0.5, 0.5)
    max_broken: Natural = 10
    accept_changed: bool = False
    threads: Natural = 0
    synthetic_examples: Count = 64
    synthetic_classes: Count = 10
    text_length: Natural = 0
    tokenizer: str = ""
    text: str = ""
    captions: Literal[*CAPTIONS] = "drawn"
    annotations: str = ""
    questions: str = ""
    answers: str = ""
    answers_min_count: Count = 9
    answer_matching: Literal[*MATCHINGS] = "auto"
    image_pattern: str = ""
    skip_defects: bool = False
    holdout_images: Natural = 0
    streams: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        def require(is_right, key, what):
            if not is_right:
                raise ValueError(f"config.data.{key}={getattr(self, key)!r} is wrong: {what}")

        require(self.name, "name", 'name a source: "digit_scenes/plain", "folder", "cifar10"')
        require(not (self.examples_per_class and self.train_examples), "train_examples",
                "examples_per_class chooses already; set one of the two")
        require(self.target_px or self.target_filter == DataOptions.target_filter,
                "target_filter", "it has no effect while target_px=0; remove it")
        low, high = self.crop_scale
        require(low <= high <= 1, "crop_scale", "it needs 0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(low <= high, "crop_ratio", "it needs low <= high")
        require(self.eval_resize == "crop" or not self.eval_crop_ratio, "eval_crop_ratio",
                "it has no effect with eval_resize=squash; remove it")
        require(re.fullmatch(_POLICY, self.randaugment), "randaugment",
                'write e.g. "rand-m9-mstd0.5-inc1" or "vl-m7"')
        for key, most in (("m", 10), ("p", 1)):
            numbers = re.findall(rf"-{key}([0-9.]+)", self.randaugment)
            require(all(float(number) <= most for number in numbers), "randaugment",
                    f"{key} lies between 0 and {most}")
        require(self.text_length == 0 or self.text_length >= 3, "text_length",
                "it needs room for <s>, a piece and </s>; 0 = no text")
        require(self.text_length or not self.text, "text", "it needs text_length, e.g. 64")
        require((self.name == "mixture") == bool(self.streams), "streams",
                'it and name="mixture" belong together')

    @property
    def crop_ratio_at_evaluation(self) -> float:
        """`eval_crop_ratio`, or what 0 stands for."""
        if self.eval_crop_ratio:
            return self.eval_crop_ratio
        return 1.0 if self.image_px <= 32 or self.image_px >= 384 else 0.875


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a source holds: numbers of examples, and the names of its classes, if it has any.

    num_eval is 0 where there is no validation split. vocab_size: rows of a table of its tokens, 0
    without texts. digest: tells whether two lists of training examples are the same, see
    `source.digest`; no part of a comparison. Of a mixture: sums over its streams, and no classes.
    """
    num_train: int
    num_eval: int
    num_classes: int
    class_names: tuple[str, ...]
    vocab_size: int = 0
    digest: str = dataclasses.field(default="", compare=False)


class SplitInfo(NamedTuple):
    """What is known of a split beside its batches.

    records: of example `index` of the batches, records[index]; None where there are none.
    class_names: () without classes. tokenizer: None without texts, or where only ids are known.
    """
    records: Sequence[Any] | None
    class_names: tuple[str, ...]
    tokenizer: Tokenizer | None

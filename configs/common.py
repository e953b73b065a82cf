"""What every recipe starts from: all legal keys with their defaults, and the toy size for tests.

No number of a paper stands here. A recipe fills the sections that its task reads; a section that it
does not read stays empty.
"""

from ml_collections import ConfigDict

IMAGENET_MEAN_STD = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF_MEAN_STD = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# Sizes of the Vision Transformer (Dosovitskiy et al., Table 1), which all papers share.
VIT = {
    "base": dict(width=768, depth=12, num_heads=12, mlp_ratio=4.0),
    "large": dict(width=1024, depth=24, num_heads=16, mlp_ratio=4.0),
    "huge": dict(width=1280, depth=32, num_heads=16, mlp_ratio=4.0),
}

# Sizes of BEiT-3: its Table 2 and the released files; small is ours, base24 Magneto's (Sec. 7).
BEIT3 = {
    "small": dict(width=384, depth=12, num_heads=6, patch_size=16),
    "base24": dict(width=544, depth=24, num_heads=16, patch_size=16),
    "base": dict(width=768, depth=12, num_heads=12, patch_size=16),
    "large": dict(width=1024, depth=24, num_heads=16, patch_size=16),
    "giant": dict(width=1408, depth=40, num_heads=16, patch_size=14, mlp_ratio=6144 / 1408,
                  remat="full"),
}

# What a classifier takes from a pre-trained network, and what it must not silently miss: one shared
# table becomes one per block, tables and positions are resized to the new grid, the head is new.
FROM_MIM = dict(
    adapt=("expand_rel_pos_bias", "resize_rel_pos_bias", "resize_pos_embed"),
    allow_missing=(r"^fc_norm/", r"^head/"),
    allow_unused=(r"^mask_token$", r"^norm/", r"^lm_head/", r"^cls_pt_"),
)
# The same from a masked autoencoder, whose encoder is a plain ViT: its decoder and whatever else it
# predicted with stay behind, and so does its final norm, which stands on tokens.
FROM_MAE = dict(
    adapt=("resize_pos_embed",),
    allow_missing=(r"^fc_norm/", r"^head/"),
    allow_unused=(r"^mask_token$", r"^norm/", r"^decoder_", r"^global_head_", r"^fusion_"),
)
# The same from a classifier: its norm stays, its head stays behind.
FROM_CLASSIFIER = dict(
    adapt=("drop_head", "resize_rel_pos_bias", "resize_pos_embed"),
    allow_missing=(r"^head/",),
)

# What BEiT-3's uses take from its pre-training; each adds the head that is missing.
FROM_BEIT3 = dict(adapt=("resize_image_positions",), allow_unused=(r"^mlm_head/", r"^mim_head/"))
BEIT3_VECTORS = (r"^vision_head/", r"^language_head/", r"^logit_scale$")

# `shrink` gives these values to the keys of a section that bear the name.
TINY = dict(image_px=32, patch_size=8, width=32, depth=2, num_heads=2, vocab_size=32,
            num_masked=6, min_block=4, group_size=4, early_layer=1, head_layers=1,
            decoder_depth=1, code_dim=8, codebook_size=16, decoder_width=32, decoder_num_heads=2,
            global_hidden=32, fusion_blocks=(0, 1), blocks=2, vl_layers=1)
TINY_DVAE = dict(vocab_size=32, n_hid=8, n_init=8, num_groups=2, blocks_per_group=1)


def base() -> ConfigDict:
    """A new config with every legal key; docs/architecture.md says what explains each."""
    return ConfigDict(dict(
        seed=0,
        task="",
        total_steps=0,  # exactly one of total_steps and total_epochs is above 0
        total_epochs=0.0,
        dtype="auto",  # of matrix products: bfloat16 on GPU and TPU, float32 on CPU
        matmul_precision="default",
        mesh=dict(data=-1, fsdp=1, tensor=1),  # devices per axis; -1 = all that remain
        data=dict(
            # digit_scenes/plain|varied|multi|tiles|photo, folder, synthetic, karpathy, pairs,
            # documents, vqa, nlvr2, index, mixture, or a TFDS name
            name="",
            path="",  # folder, images of texts: directory; TFDS: data_dir; digit_scenes: cache
            train_split="train",
            eval_split="validation",
            holdout_per_class=0,
            examples_per_class=0,
            train_examples=0,
            subset_seed=0,
            global_batch_size=0,
            eval_batch_size=0,
            image_px=0,
            target_px=0,
            target_filter="lanczos3",
            crop="resized",  # resized, resized_once, pad, none, dvae
            crop_scale=(0.08, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            interpolation="bicubic",
            flip=0.5,
            color_jitter=0.0,
            randaugment="",
            eval_resize="crop",  # crop, squash
            eval_crop_ratio=0.0,  # 0 = 1 for images of at most 32 px or at least 384 px, else 0.875
            fast=False,
            accept_changed=False,  # go on although the training examples have changed
            max_broken=10,  # image files that may break during a run
            threads=0,
            synthetic_examples=64,
            synthetic_classes=10,
            text_length=0,  # tokens of a text; 0 = none
            tokenizer="",  # SentencePiece model
            text="",  # digit_scenes: captions, questions, statements, sentences; TFDS: a feature
            captions="drawn",  # drawn, each
            annotations="",  # files of texts; {split} stands for the split
            questions="",
            answers="",
            answers_min_count=9,
            answer_matching="auto",  # auto, written, normal
            image_pattern="",  # of questions: "{subset}/{id}.jpg"; "" = COCO's names
            skip_defects=False,
            holdout_images=0,
            streams=dict(),  # of a mixture
            **HALF_MEAN_STD,
        ),
        model=dict(),
        mask=dict(),
        target=dict(),
        loss=dict(),
        augment=dict(),
        probe=dict(),
        measure=dict(),
        optim=dict(
            learning_rate=0.0,
            name="adamw",  # adamw, lars
            min_learning_rate=0.0,
            warmup_steps=0,
            warmup_epochs=0.0,
            schedule="cosine",
            decay_steps=0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.05,
            weight_decay_end=-1.0,
            clip_norm=0.0,
            layer_decay=1.0,
            head_rate=1.0,
            accumulation_steps=1,
            decay_rule="matrices",
            decay_rel_pos_bias=True,
            ema_decay=0.0,
            mu_dtype="float32",
            momentum=0.9,  # of lars, as the next one
            trust_coefficient=0.001,
        ),
        init=dict(checkpoint="", adapt=(), use_ema=True, allow_missing=(), allow_unused=(),
                  collections=(), accept_other_statistics=False),
        eval=dict(every_steps=0, every_epochs=0.0, split="validation", limit=0, pictures=8,
                  knn=(), knn_temperature=0.07, knn_split="train", knn_bank=0),
        checkpoint=dict(every_steps=1000, keep_last=2, keep_best="", keep_every_steps=0),
        log=dict(every_steps=50, tensorboard=True),
        stages=dict(),
        report=dict(),
    ))


def staged() -> ConfigDict:
    """A new recipe of stages, each a whole config; nothing else can be set in it."""
    return ConfigDict(dict(stages=dict(), report=dict()))


def choose(variant: str, names: tuple[str, ...]) -> tuple[str, bool]:
    """Splits what stands after ":" on the command line.

    Args:
      variant: "", a name, "smoke", or a name followed by "_smoke".
      names: the recipe's variants; the first one is the default.
    Returns: (name, whether the toy size is asked for).
    Raises: ValueError: an unknown name.
    """
    smoke = variant == "smoke" or variant.endswith("_smoke")
    name = variant.removesuffix("smoke").removesuffix("_") if smoke else variant
    name = name or names[0]
    if name not in names:
        raise ValueError(f"config variant {variant!r} is unknown; known: {', '.join(names)}, each "
                         f"also with _smoke behind it")
    return name, smoke


# names of data with texts -> what the toy data calls their kind
TEXTS = {"karpathy": "captions", "pairs": "captions", "vqa": "questions", "nlvr2": "statements",
         "documents": "sentences"}


def shrink_data(data: ConfigDict) -> None:
    """Noise images and texts of the same kind in place of the data, 8 to a batch, as they are."""
    for stream in data.streams.values():
        stream.text = TEXTS.get(stream.name, stream.get("text", ""))
        stream.name = "synthetic"
        stream.update({key: "" for key in ("annotations", "path") if key in stream})
        if stream.get("text_length"):
            stream.text_length = 16
    data.update(text=TEXTS.get(data.name, data.text),
                name="mixture" if data.streams else "synthetic",
                path="", annotations="", questions="", answers="", tokenizer="",
                answer_matching="auto", image_pattern="",
                holdout_images=0,
                global_batch_size=12 if data.streams else 8, eval_batch_size=0,
                image_px=TINY["image_px"], holdout_per_class=0, examples_per_class=0,
                train_examples=0)
    if data.text_length:
        data.text_length = 16


def shrink(config: ConfigDict) -> ConfigDict:
    """The same recipe at toy size: the same code paths on noise images, 2 steps, seconds on a CPU.

    Checkpoints of earlier stages (stage:NAME) stay; one that would have to be downloaded or trained
    before becomes random weights, or none where training starts from it.
    """
    for stage in config.get("stages", {}).values():
        shrink(stage)
    if "task" not in config:
        return config
    config.update(total_steps=2, total_epochs=0.0)
    shrink_data(config.data)
    for section in (config.model, config.mask, config.mask.get("image", {}), config.augment,
                    config.loss, config.target, config.target.get("model", {})):
        section.update({key: value for key, value in TINY.items() if key in section})
    if config.data.text_length and "vocab_size" in config.model:
        config.model.vocab_size = -1  # of the toy texts
    if config.mask.get("cell", 1) > 1:
        config.mask.update(cell=2, num_masked=8)  # two of the four cells
    kind = config.target.get("kind", "")
    if kind == "dvae":
        config.target.update(TINY_DVAE)
        config.data.target_px = 8  # codes stand for 2 px each: a 4 x 4 grid, as the patches'
    elif kind == "vqkd" and config.data.target_px:
        config.data.target_px = TINY["image_px"]
    elif kind == "dino_resnet50":
        config.target.update(image_px=64, layers=(1, 1, 1, 1), widths=(8, 8, 8, 8), stem_width=8)
        config.data.target_px = 64  # a token stands for 32 px: a 2 x 2 grid
    elif kind.startswith(("clip", "dino", "mae_")):  # whose sizes follow from the name
        config.target.update(image_px=32, patch_size=8, width=32, depth=2, num_heads=2)
        config.data.update(target_px=0, target_filter="lanczos3")
    elif kind == "hog":
        config.target.update(image_px=32, patch_size=8)
    if config.task == "dvae_train":
        config.model.update(TINY_DVAE)
    if config.optim.warmup_steps or config.optim.warmup_epochs:
        config.optim.update(warmup_steps=1, warmup_epochs=0.0)
    config.optim.decay_steps = 0
    config.eval.update(every_steps=0, every_epochs=0.0)
    config.log.every_steps = 1
    has_weights = kind not in ("hog", "pixels")
    if has_weights and not config.target.get("checkpoint", "stage:").startswith("stage:"):
        config.target.checkpoint = "random"
    if not config.init.checkpoint.startswith("stage:"):
        # a probe has nothing else to look at; training simply starts fresh
        config.init.checkpoint = "random" if config.task == "linear_probe" else ""
    return config

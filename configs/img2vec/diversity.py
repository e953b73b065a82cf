"""Whose tokens differ most? Token similarity S of teachers and other targets, on ImageNet-1k.

python -m beit_jax.main --config configs/img2vec/diversity.py:dino_resnet50,dino_vitb16 \
    --workdir runs/diversity \
    --config.stages.dino_resnet50.target.checkpoint=dino_resnet50.npz \
    --config.stages.dino_vitb16.target.checkpoint=dino_vitb16.npz

Files come from python -m beit_jax.convert. What stands after ":" names the teachers whose files you
have; nothing: all. One whose checkpoint is not given ends the run with a line that says so;
what was measured before is kept, and the same command with the file, or with that teacher left out,
goes on. Further words, with commas between them:
  random      seeded random weights for all, without any file: what S is before training
  a folder    (a word with a "/" in it) of images in place of ImageNet-1k, see docs/data.md
  smoke       or _smoke behind the last word: toy size, seconds on a CPU

Each stage goes twice over 50,000 images: 196 steps over ones drawn at random give the mean token
and the variance of each channel, the evaluation over ones evenly spaced gives S. A folder with
fewer than 256 images needs --config.stages.NAME.data.global_batch_size for each teacher.
The table is sorted by S, the most diverse teacher first, as the paper compares them. D is 1 - S.
Read S beside the other columns: it takes what all tokens share (features behind a ReLU, the bias of
a norm) for likeness, which "centred" takes away; neighbours on a finer grid are closer, which
"pooled" (2 x 2 tokens averaged) evens out: compare K, the number of tokens. C is their width.

No number of the paper is known to us: they stand in its figures. Sample size and the columns beside
S are ours; the paper takes all 1.28 million training images.
Source: Img2Vec (arXiv 2304.12535), token diversity.
"""

from configs import common

# which tokens of each teacher are measured; class and register tokens never are
LAYERS = {
    "dino_resnet50": "last ReLU",
    "dino_vits16": "final norm",
    "dino_vitb16": "final norm",
    "mae_vitb16": "final norm",
    "mae_vitl16": "final norm",
    "clip_vitb16": "joint space",
    "dinov2_vits14": "final norm",
    "dinov2_vitb14": "final norm",
    "dinov2_vitl14": "final norm",
    "hog": "-",
    "pixels": "-",
}
FREE = ("hog", "pixels")  # targets without weights
NUM_IMAGES = 50_000  # the standard error of S is then below 0.001
BATCH = 256
COLUMNS = {
    "D": "diversity", "S centred": "similarity_centred", "S pooled": "similarity_pooled",
    "K": "num_tokens", "C": "width",
}


def get_config(variant: str = ""):
    words = [word for word in variant.removesuffix("smoke").rstrip("_,").split(",") if word]
    folders = [word for word in words if "/" in word]
    unknown = [word for word in words if word not in (*LAYERS, "random", *folders)]
    if unknown or len(folders) > 1:
        raise ValueError(f"config variant {variant!r} is unknown: {', '.join(unknown or folders)}; "
                         f"known: random, smoke, a folder (with a /), {', '.join(LAYERS)}")
    names = [name for name in LAYERS if name in words] or list(LAYERS)
    config = common.staged()
    config.stages = {name: teacher(name, "random" if "random" in words else "",
                                   folders[0] if folders else "") for name in names}
    config.report = dict(
        metric="eval/train/similarity", head="S", setting="read behind", digits=4,
        sort="ascending", title="Token similarity S, the teacher of the most diverse tokens first",
        rows={name: {LAYERS[name]: (name,)} for name in names},
        columns={title: f"eval/train/{metric}" for title, metric in COLUMNS.items()})
    return common.shrink(config) if variant.endswith("smoke") else config


def teacher(name: str, checkpoint: str, folder: str):
    config = common.base()
    config.task = "token_diversity"
    config.total_steps = -(-NUM_IMAGES // BATCH)  # of statistics
    config.data.update(
        name="folder" if folder else "imagenet2012", path=folder,
        eval_split="train",  # S is one of training images; no other split needs to be there
        global_batch_size=BATCH,
        image_px=224,
        crop="none", flip=0.0,  # of statistics: the middle of the image, nothing random
        eval_crop_ratio=0.875,  # resize to 256, cut out 224
    )
    config.target = (dict(kind=name, image_px=224, patch_size=16) if name in FREE
                     else dict(kind=name, checkpoint=checkpoint))
    if name.startswith("dinov2"):  # 16 x 16 tokens; its own positions are for 518 px
        config.target.update(image_px=224, adapt=("resize_pos_embed_offset",))
    config.eval.update(split="train", limit=NUM_IMAGES)
    config.log.every_steps = 20
    return config

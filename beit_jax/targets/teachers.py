"""Features that are to be predicted, by the name of what gives them: TEACHERS.

All have one interface: `init(key)` gives random weights, that is the shape into which a checkpoint
is loaded; `features(variables, image01)` maps images in [0, 1] to float32 tokens [b, gh * gw, c],
row-major, without class and register tokens and without a gradient; `dim` is c, `grid` is
(gh, gw), `flops` the work per image as flops.py counts; `has_weights` is False for those that are
computed from the image alone, whose `variables` may be {}. The student's normalisation never
reaches a teacher: each has its own mean and std inside, and all refuse images of another size than
they were made for. Tasks that want one vector of an image take the mean of its raw tokens.
"""

from beit_jax.targets.backbone import Backbone
from beit_jax.targets.hog import Hog
from beit_jax.targets.pixels import Pixels
from beit_jax.targets.resnet import DinoResnet50
from beit_jax.targets.vit_teachers import (
    ClipVitb16,
    Dinov2Vitb14,
    Dinov2Vitl14,
    Dinov2Vits14,
    DinoVitb16,
    DinoVits16,
    MaeVitb16,
    MaeVitl16,
)

TEACHERS = {
    "backbone": Backbone,
    "clip_vitb16": ClipVitb16,
    "dino_resnet50": DinoResnet50,
    "dino_vitb16": DinoVitb16,
    "dino_vits16": DinoVits16,
    "dinov2_vitb14": Dinov2Vitb14,
    "dinov2_vitl14": Dinov2Vitl14,
    "dinov2_vits14": Dinov2Vits14,
    "hog": Hog,
    "mae_vitb16": MaeVitb16,
    "mae_vitl16": MaeVitl16,
    "pixels": Pixels,
}

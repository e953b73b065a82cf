"""Captions that a network wrote, beside their pictures and what people said."""

import json
import textwrap

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from beit_jax import options
from beit_jax.data import pipeline

_SHOWN, _ACROSS = 8, 4
_LINE = 34  # characters


def draw(run) -> Figure | None:
    """The first pictures of the split that the run measures; None where no captions were written.

    Args: run: folder of a run, a path; the data are read again as its config.json says.
    Raises: as `pipeline.eval_batches`.
    """
    if not (run / "predictions").is_dir():
        return None
    config = json.loads((run / "config.json").read_text())
    split, limit = config["eval"]["split"], config["eval"]["limit"]
    file = run / "predictions" / split / "captions.json"
    if not file.is_file():
        return None
    written = {entry["image_id"]: entry["caption"] for entry in json.loads(file.read_text())}
    data = options.build(pipeline.DataOptions, config["data"], "config.data")
    records = pipeline.split_info(data, split, limit).records
    images = next(iter(pipeline.eval_batches(data, split, limit=limit)))["image"]
    if records is None or records[0].image_id not in written:
        return None  # captions of another split than the one the config names now
    shown = min(_SHOWN, len(records), len(images))
    rows = -(-shown // _ACROSS)
    figure = Figure(figsize=(3.2 * _ACROSS, 4.0 * rows), layout="compressed")
    FigureCanvasAgg(figure)
    for place, axes in enumerate(figure.subplots(rows, _ACROSS, squeeze=False).ravel()):
        if place >= shown:
            axes.set_axis_off()
            continue
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.imshow(images[place])
        axes.set_title(_wrapped(written.get(records[place].image_id, "")), fontsize=9)
        for said in records[place].captions[:1]:  # none of images that people did not describe
            axes.set_xlabel(_wrapped(said), fontsize=8, color="#777777")
    figure.suptitle("written captions, and in grey one of people's", fontsize=11)
    return figure


def _wrapped(text: str) -> str:
    return textwrap.fill(text or "(nothing)", _LINE)

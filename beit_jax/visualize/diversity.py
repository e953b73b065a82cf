"""Bars of token similarity: which teacher's tokens differ most."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from beit_jax.visualize import curves

# kind of similarity -> its name and colour; the first one is always there
BARS = {
    "similarity": ("S", "#1f5f8b"),
    "similarity_centred": ("S centred", "#c2410c"),
}


def draw_bars(workdirs: Mapping[str, str]) -> Figure | None:
    """Token similarity of several teachers, the smallest on top; None if nothing measured it.

    Args: workdirs: {label: workdir}; the last measurement of task token_diversity counts.
    """
    found = {}
    for label, workdir in workdirs.items():
        last = {name: values[-1] for name, (_, values) in curves.read_curves(workdir).items()}
        splits = [name.split("/")[1] for name in last if name.startswith("eval/")
                  and name.endswith("/similarity_centred")]
        if splits:
            found[label] = {kind: last[f"eval/{splits[0]}/{kind}"] for kind in BARS}
    if not found:
        return None
    names = sorted(found, key=lambda name: found[name]["similarity"])
    figure = Figure(figsize=(7.2, 1.4 + 0.5 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.76 / len(BARS)
    for place, (kind, (title, colour)) in enumerate(BARS.items()):
        rows = [row + (place - (len(BARS) - 1) / 2) * height for row in range(len(names))]
        values = [found[name][kind] for name in names]
        axes.barh(rows, values, height=0.9 * height, color=colour, label=title)
        for row, value in zip(rows, values, strict=True):
            axes.annotate(f"{value:.3f}", (value, row), (4 if value >= 0 else -4, 0), fontsize=8,
                          textcoords="offset points", va="center",
                          ha="left" if value >= 0 else "right")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()  # the most diverse on top
    axes.axvline(0.0, color="#555555", linewidth=0.8)
    axes.margins(x=0.12)
    axes.set_xlabel("mean cosine of an image's tokens; diversity is 1 - S")
    axes.set_title("token similarity, the most diverse teacher on top", fontsize=11)
    curves.tidy(axes)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure

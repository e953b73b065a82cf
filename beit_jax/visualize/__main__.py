"""python -m beit_jax.visualize --workdir DIR

Draws all figures of a run and its stages, in DIR/figures.

The curves are drawn anew; pictures that the tasks drew while training are copied.
"""

import argparse
import json
import logging
import sys

from beit_jax.checkpoint import absolute

log = logging.getLogger(__name__)


def collect(workdir: str) -> list[str]:
    """Draws and copies the figures.

    Args:
      workdir: of a run, or of a recipe with stages.
    Returns: names of the files that now are in figures/.
    """
    # matplotlib takes a second, and training processes import this module at their end only
    from beit_jax.visualize import against, captions, curves, diversity

    folder = absolute(workdir)
    figures = folder / "figures"
    stages = _stages(folder)
    names = set()
    figures.mkdir(parents=True, exist_ok=True)
    for label, run in stages.items():
        prefix = f"{label}_" if label else ""
        figure = curves.draw_run(run, label or folder.name)
        if figure is not None:
            names.add(_save(figure, figures / f"{prefix}curves.png"))
        try:
            figure = captions.draw(run)
        except (OSError, ValueError) as error:  # the other figures need no data
            log.warning("no figure of captions: %s", error)
            figure = None
        if figure is not None:
            names.add(_save(figure, figures / f"{prefix}captions.png"))
        if label and (run / "figures").is_dir():
            for picture in sorted(p for p in (run / "figures").iterdir() if p.suffix == ".png"):
                (figures / f"{prefix}{picture.name}").write_bytes(picture.read_bytes())
                names.add(f"{prefix}{picture.name}")
    if len(stages) > 1:
        for metric, title in _shared_metrics(stages):
            figure = curves.draw_comparison(stages, metric, title)
            if figure is not None:
                names.add(_save(figure, figures / f"all_{metric.split('/')[-1]}.png"))
    figure = diversity.draw_bars({label or folder.name: run for label, run in stages.items()})
    if figure is not None:
        names.add(_save(figure, figures / "token_diversity.png"))
    if (folder / "report.json").exists():
        report = json.loads((folder / "report.json").read_text())
        titles = {title for row in report["rows"] for title in row.get("columns") or {}}
        for title in sorted(titles):
            figure = against.draw(report, title)
            if figure is not None:
                name = f"report_against_{title.replace(' ', '_')}.png"
                names.add(_save(figure, figures / name))
    return sorted(names)


def _stages(folder) -> dict:
    """{label: folder} of runs: the folder itself, or those of its sub-folders that hold a run."""
    if (folder / "metrics.jsonl").exists():
        return {"": folder}
    return {path.name: path for path in sorted(folder.iterdir())
            if path.is_dir() and (path / "metrics.jsonl").exists()}


def _shared_metrics(stages) -> list[tuple[str, str]]:
    """Accuracies that at least two stages measured."""
    from beit_jax.visualize import curves

    counts: dict[str, int] = {}
    for run in stages.values():
        for name in curves.read_curves(run):
            counts[name] = counts.get(name, 0) + 1
    return [(name, f"{name.split('/')[1]} accuracy of all stages") for name in sorted(counts)
            if counts[name] > 1 and name.startswith("eval/") and name.endswith("/top1")]


def _save(figure, path) -> str:
    """Writes a PNG; returns its name."""
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=130)
    return path.name


def main() -> int:
    """The command line. Returns: 0, or 1 after one line on what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m beit_jax.visualize",
                                     description="Draws the figures of a workdir and its stages.")
    parser.add_argument("--workdir", required=True, help="folder that beit_jax.main wrote")
    parser.add_argument("--helpfull", action="help", help=argparse.SUPPRESS)
    workdir = parser.parse_args().workdir
    try:
        if not absolute(workdir).is_dir():
            raise FileNotFoundError(f"workdir {workdir} does not exist")
        names = collect(workdir)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"figures": str(absolute(workdir) / "figures"), "files": names}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

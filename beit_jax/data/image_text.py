"""Images with captions, and texts alone, out of the files they are published in."""

from collections.abc import Sequence
from typing import NamedTuple

from beit_jax.data import annotations
from beit_jax.data.source import MissingSplit


class Captioned(NamedTuple):
    """An image and what people say of it. image: path; image_id: as in the file.

    captions: () where nobody tells (the splits of test servers).
    """
    image_id: int | str
    image: str
    captions: tuple[str, ...]


def read_karpathy(path: str, image_folder: str, splits: Sequence[str], *,
                  needs_captions: bool = True, skip_defects: bool = False) -> list[Captioned]:
    """Karpathy's splits: dataset_coco.json, dataset_flickr30k.json.

    Captions are the "raw" ones. Ids are COCO's ("cocoid"), elsewhere the file's own ("imgid").

    Args:
      path: of the JSON file.
      image_folder: COCO: the one that holds train2014 and val2014; Flickr30k: that of the images.
      splits: those that are wanted: ("train", "restval") for training on COCO, ("test",), ...
      needs_captions: False keeps images without captions, for evaluation.
      skip_defects: True leaves out entries with a defect, and says so in the log.
    Returns: in the file's order.
    Raises: FileNotFoundError: no such file or folder. MissingSplit: no image of these splits.
      ValueError: another layout, or without `skip_defects` an id or a file that occurs twice, an
      image that is not on disk, an empty caption, an image that lacks the captions it needs.
    """
    images = annotations.field(annotations.read_json(path), "images", path, "the top level", "list")
    known = set()
    found = _Collection(image_folder, needs_captions, key="raw")
    for number, entry in enumerate(images):
        with annotations.noting(found.defects):
            place = path, f"image {number}"
            split = annotations.field(entry, "split", *place, "text")
            known.add(split)
            if split not in splits:
                continue
            name = annotations.field(entry, "filename", *place, "name")
            if "filepath" in entry:
                name = f"{annotations.field(entry, 'filepath', *place, 'text')}/{name}"
            image_id = annotations.field(entry, "cocoid" if "cocoid" in entry else "imgid", *place,
                                         "id")
            captions = [annotations.field(sentence, "raw", path, f"a sentence of image {number}",
                                          "any")
                        for sentence in annotations.field(entry, "sentences", *place, "list")]
            found.add(f"image {number} ({name})", image_id, name, captions)
    if not (found.seen or found.defects):
        raise MissingSplit(f"{path} has no image of split {', '.join(splits)}; it has "
                           f"{', '.join(sorted(known)) or 'none'}: set config.data.eval_split")
    annotations.settle(path, found.defects, skip_defects)
    return found.records


def read_pairs(path: str, image_folder: str, *, needs_captions: bool = True,
               skip_defects: bool = False) -> list[Captioned]:
    """Anybody's pairs, one JSON object a line: {"image": "a.jpg", "caption": "a cat"}.

    "caption" may be a list of several, or null or [] where there is none; lines of one image become
    one record, whose id is its name.

    Args, Raises: as of `read_karpathy`; a pair that occurs twice is a defect.
    Returns: in the order of each image's first line.
    """
    lines: dict[str, dict[str, str]] = {}
    defects: list[str] = []
    for where, entry in annotations.read_json_lines(path):
        with annotations.noting(defects):
            name = annotations.field(entry, "image", path, where, "name")
            captions = annotations.field(entry, "caption", path, where, "any")
            known = lines.setdefault(name, {})
            for caption in _several(captions, path, where):
                if caption in known:
                    defects.append(f"{where}: the same pair stands at {known[caption]}")
                known.setdefault(caption, where)
    if not (lines or defects):
        raise ValueError(f'{path} is empty: write {{"image": FILE, "caption": TEXT}}, one a line')
    found = _Collection(image_folder, needs_captions, defects, key="caption")
    for name, captions in lines.items():
        found.add(f"image {name}", name, name, list(captions))
    annotations.settle(path, found.defects, skip_defects)
    return found.records


def _several(captions, path: str, where: str) -> list[str]:
    """The captions of a line: none, one or several. Raises: Defect: something else."""
    if captions is None:
        return []
    if isinstance(captions, list):
        return [annotations.check(one, "caption", path, where, "text") for one in captions]
    return [annotations.check(captions, "caption", path, where, "text or list of texts")]


def read_documents(path: str) -> list[tuple[str, ...]]:
    """Plain text, one sentence or paragraph a line, documents apart by blank lines.

    Returns: the lines of each document.
    Raises: FileNotFoundError: no such file. ValueError: it is not UTF-8, or has no text.
    """
    documents: list[list[str]] = [[]]
    for line in annotations.read_text(path).splitlines():
        if line.strip():
            documents[-1].append(line.strip())
        elif documents[-1]:
            documents.append([])
    if not documents[0]:
        raise ValueError(f"{path} is empty: write one sentence or paragraph a line")
    return [tuple(lines) for lines in documents if lines]


class _Collection:
    """Records of one file as they are read, and what was wrong with others."""

    def __init__(self, image_folder: str, needs_captions: bool,
                 defects: list[str] | None = None, *, key: str):
        """key: what a caption is called in the file."""
        self.image_folder, self.needs_captions, self.key = image_folder, needs_captions, key
        self.defects = [] if defects is None else defects
        self.records: list[Captioned] = []
        self.seen: set = set()  # ids and names

    def add(self, where: str, image_id: int | str, name: str, captions: list) -> None:
        """One image, or a defect. `seen` grows in any case. captions: as in the file."""
        twice = {("id", image_id), ("name", name)} & self.seen
        self.seen |= {("id", image_id), ("name", name)}
        if twice:
            kind = min(twice)[0]
            self.defects.append(f"{where}: its {kind} {image_id if kind == 'id' else name} occurs "
                                "twice")
            return
        wrong = [c for c in captions if annotations.is_blank(c)]
        self.defects += [f"{where}: its caption {annotations.short(c)} is empty or no text "
                         f'"..." ({self.key!r})' for c in wrong[:1]]
        kept = tuple(c for c in captions if not annotations.is_blank(c))
        if not captions and self.needs_captions:
            self.defects.append(f"{where}: it has no caption")
        image = annotations.find_image(self.image_folder, name, self.defects, where)
        if image and (kept or not (captions or self.needs_captions)):
            self.records.append(Captioned(image_id, image, kept))

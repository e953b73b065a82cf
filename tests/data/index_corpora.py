"""Index files as the released BEiT-3 programs write them, in small, for tests of `data`."""

import os

from text_corpora import SPLITS, WORDS, captions_of, tokenizer, write_image, write_lines

ANSWERS = ("red", "blue", "green")


def ids(text):
    """As they stand in the files: without <s> and </s>."""
    return tokenizer().encode(text)


def captions(folder, described=("train", "val")):
    """coco_retrieval.{train,val}.jsonl, a line for each caption; one with null in other splits."""
    for split in ("train", "val"):
        lines = []
        numbers = [n for n, of in enumerate(SPLITS) if of.replace("restval", "train") == split]
        for image_id, number in enumerate(numbers):
            name = f"{split}2014/{number}.png"
            write_image(folder / "images" / name, number)
            said = [ids(text) for text in captions_of(number)] if split in described else [None]
            lines += [{"image_path": name, "text_segment": text, "image_id": image_id}
                      for text in said]
        write_lines(folder / f"coco_retrieval.{split}.jsonl", lines)
    return str(folder / "coco_retrieval.{split}.jsonl")


def questions(folder):
    """vqa.{train,trainable_val,rest_val,test,test-dev}.jsonl and answer2label.txt; the keys."""
    asked = {"train": [(0, (0,)), (1, (1, 0)), (1, (0,))], "trainable_val": [(2, (2,))],
             "rest_val": [(3, (0, 1)), (4, (1,)), (4, (2,))], "test": [(6, ()), (6, ())],
             "test-dev": [(6, None)]}
    for part, entries in asked.items():
        lines = []
        for number, (picture, labels) in enumerate(entries):
            name = f"{part}2014/COCO_{picture:012d}.png"
            write_image(folder / "images" / name, picture)
            told = {} if labels is None else {
                "labels": list(labels), "scores": [1.0, 0.3][:len(labels)]}
            lines.append({"image_path": name, "text_segment": ids(f"what is {WORDS[number]}"),
                          **told, "qid": 1000 * picture + number})
        write_lines(folder / f"vqa.{part}.jsonl", lines)
    answers = write_lines(folder / "answer2label.txt", [
        {"answer": answer, "label": label} for label, answer in enumerate(ANSWERS)])
    return dict(annotations=str(folder / "vqa.{split}.jsonl"), answers=answers,
                train_split="train+trainable_val", eval_split="rest_val")


def statements(folder):
    """nlvr2.{train,dev}.index.jsonl; the keys."""
    for split, root in (("train", "images/train/0"), ("dev", "dev")):
        lines = []
        for number in range(3):
            names = [f"{root}/{split}-{number}-0-img{side}.png" for side in (0, 1)]
            for side, name in enumerate(names):
                write_image(folder / "images" / name, 2 * number + side)
            lines += [{"image_path": names[0], "image2_path": names[1],
                       "text_segment": ids(f"{WORDS[number]} dog"), "label": label,
                       "identifier": f"{split}-{number}-0-{label}"} for label in (1, 0)]
        write_lines(folder / f"nlvr2.{split}.index.jsonl", lines)
    return dict(annotations=str(folder / "nlvr2.{split}.index.jsonl"), eval_split="dev")


def labels(folder):
    """imagenet.{train,val}.index.jsonl, of training two images of each of 3 classes; the keys."""
    for split, numbers in (("train", range(6)), ("val", (4, 1))):
        lines = []
        for number in numbers:
            name = os.path.join(split, f"n0{number % 3}", f"{number}.png")
            write_image(folder / "images" / name, number)
            lines.append({"image_path": name, "label": number % 3})
        write_lines(folder / f"imagenet.{split}.index.jsonl", lines)
    return dict(annotations=str(folder / "imagenet.{split}.index.jsonl"), eval_split="val")

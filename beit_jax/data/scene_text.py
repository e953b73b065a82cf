"""Sentences about digit scenes: captions, questions with ten answers, statements about two scenes.

Words come from the scene's own record, never from its pixels, so every sentence has a known truth.
"""
from typing import NamedTuple

import numpy as np

from beit_jax.data import digit_scenes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ANNOTATORS = 10  # answers to each question, as in VQAv2


class Thing(NamedTuple):
    """One digit of a scene: what it is, its colour or tone, its size in words, its centre."""
    digit: str
    color: str
    size: str
    x: float
    y: float
    value: int
    pixels: float


def things_in(scenes: dict, row: int, config) -> list[Thing]:
    """The digits of scene `row` of `digit_scenes.make_scenes(config, ...)`, left to right."""
    config = digit_scenes.find_config(config)
    names = digit_scenes.color_names(config)
    middle = sum(config.digit_px) / 2
    things = []
    for slot in np.flatnonzero(scenes["digits"][row] >= 0):
        value, pixels = int(scenes["digits"][row, slot]), float(scenes["sizes"][row, slot])
        x, y = scenes["centers"][row, slot].tolist()
        things.append(Thing(DIGITS[value], names[scenes["colors"][row, slot]],
                            "large" if pixels > middle else "small", x, y, value, pixels))
    return sorted(things, key=lambda thing: thing.x)


def captions(things: list[Thing], image_px: int, rng) -> list[str]:
    """Two captions: one of everything, one of where things are."""
    listed = " and ".join(_a(f"{t.color} {t.digit}") for t in things)
    if len(things) == 1:
        return [_a(f"{things[0].size} {things[0].color} {things[0].digit}"),
                f"{listed} {_place(things[0], image_px)}"]
    first, second = rng.permutation(len(things))[:2]
    first, second = things[first], things[second]
    return [listed, f"{_a(f'{first.color} {first.digit}')} {_relation(first, second)} "
                    f"{_a(f'{second.size} {second.color} {second.digit}')}"]


def questions(things: list[Thing], image_px: int, rng) -> list[tuple[str, list[str]]]:
    """Three questions, each with ten answers: eight or more are right, the rest near misses."""
    one = things[rng.integers(len(things))]
    other_digit = DIGITS[rng.integers(10)]
    asked = [
        (f"what digit is {one.color}?", one.digit, DIGITS),
        (f"is there {_a(other_digit)}?", _yes(any(t.digit == other_digit for t in things)),
         ("yes", "no")),
    ]
    if len(things) > 1:
        asked.append(("how many digits are there?", DIGITS[len(things)], DIGITS[1:5]))
    else:
        asked.append(("where is the digit?", _place(one, image_px).removeprefix("at the "),
                      ("top left", "top right", "bottom left", "bottom right")))
    return [(question, _answers(right, choices, rng)) for question, right, choices in asked]


def statement(left: list[Thing], right: list[Thing], rng) -> tuple[str, bool]:
    """A sentence about a pair of scenes, and whether it is true; about half of them are."""
    wanted = bool(rng.integers(2))
    for _ in range(20):  # draw until the truth is the wanted one; nearly always within a few
        sentence, is_true = _statement(left, right, rng)
        if is_true == wanted:
            break
    return sentence, is_true


def _statement(left, right, rng) -> tuple[str, bool]:
    shown = left + right
    kind = rng.integers(3)
    if kind == 0:
        thing = shown[rng.integers(len(shown))]
        in_both = all(any(t.digit == thing.digit for t in side) for side in (left, right))
        return f"both images show {_a(thing.digit)}", in_both
    if kind == 1:
        thing = shown[rng.integers(len(shown))]
        count = sum(any(t.color == thing.color for t in side) for side in (left, right))
        return f"exactly one image shows a {thing.color} digit", count == 1
    totals = [sum(t.value for t in side) for side in (left, right)]
    which = rng.integers(2)
    side, is_true = (("left", totals[0] > totals[1]), ("right", totals[1] > totals[0]))[which]
    return f"the digits of the {side} image add up to more", is_true


def _answers(right: str, choices, rng) -> list[str]:
    wrong = [choice for choice in choices if choice != right]
    misses = [str(rng.choice(wrong)) for _ in range(rng.integers(3))]
    return [right] * (ANNOTATORS - len(misses)) + misses


def _a(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _yes(is_true: bool) -> str:
    return "yes" if is_true else "no"


def _place(thing: Thing, image_px: int) -> str:
    vertical = "top" if thing.y < image_px / 2 else "bottom"
    return f"at the {vertical} {'left' if thing.x < image_px / 2 else 'right'}"


def _relation(first: Thing, second: Thing) -> str:
    """Along the axis on which the two lie further apart."""
    if abs(first.x - second.x) >= abs(first.y - second.y):
        return "left of" if first.x < second.x else "right of"
    return "above" if first.y < second.y else "below"

"""The demo's stories are consistent: what they say later follows from what they said before."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from compressor.demo import TRAIN_TEXT, VALID_TEXT
from compressor.demo.grammar import DAYS, END, NAMES, NUMBERS, THINGS, TOWNS, TRADES, Chooser, document, stories, story

SAMPLE = [text for text, _ in itertools.islice(stories("test"), 400)]
# Somebody, with or without trade or town.
WHO = r"(\w+)(?: the \w+| of \w+)?"
VALUE = {word: number for number, word in enumerate(NUMBERS)}


def _starting_counts(text: str) -> dict[str, int]:
    for pattern in (
        r"(\w+) had (\w+) \w+ \w+ made of \w+, and (\w+) had (\w+)",
        r"made of \w+, (\w+) had (\w+), but (\w+) had (\w+)",
    ):
        if found := re.search(pattern, text):
            a, n, b, m = found.groups()
            return {a: VALUE[n], b: VALUE[m]}
    raise AssertionError(text)


def _counts_by_hand(text: str) -> tuple[dict[str, int], list[tuple[str, int, int]]]:
    """Read the story sentence by sentence; return the final counts and (who, stated, expected) of every statement."""
    counts = _starting_counts(text)
    stated = []
    for sentence in re.split(r"(?<=[.?]) ", text):
        if found := re.search(WHO + r" gave (\w+) \w+ to (\w+)\.", sentence):
            giver, number, taker = found.groups()
        elif found := re.search(r"(\w+) came and asked for (\w+) \w+, and " + WHO + " said yes", sentence):
            taker, number, giver = found.groups()
        elif found := re.search(WHO + r" bought (\w+) more \w+, so (?:she|he) had (\w+)", sentence):
            counts[found[1]] += VALUE[found[2]]
            stated.append((found[1], VALUE[found[3]], counts[found[1]]))
            continue
        else:
            for name, number in re.findall(
                r"(\w+) had (\w+)(?: left|\.)", sentence if sentence.startswith("Now") else ""
            ):
                stated.append((name, VALUE[number], counts[name]))
            if found := re.search(r"In the end (\w+) had (\w+) ", sentence):
                stated.append((found[1], VALUE[found[2]], max(counts.values())))
            continue
        counts[giver] -= VALUE[number]
        counts[taker] += VALUE[number]
    return counts, stated


@pytest.mark.parametrize("text", SAMPLE[:100])
def test_counts_add_up(text: str) -> None:
    counts, stated = _counts_by_hand(text)
    assert [(who, said) for who, said, _ in stated] == [(who, expected) for who, _, expected in stated]
    assert all(0 <= number <= 20 for number in counts.values())


def test_the_sample_holds_every_kind_of_event() -> None:
    for words in ("gave", "said yes", "bought", "went from", "There was", "worked with", "In the end", "?"):
        assert sum(words in text for text in SAMPLE) > 20, words


def test_days_follow_one_another() -> None:
    for text in SAMPLE:
        days = [DAYS.index(day) for day in re.findall("|".join(DAYS), text)]
        assert all((later - earlier) % 7 == 1 for earlier, later in itertools.pairwise(days))


def test_facts_of_the_world_hold() -> None:
    for text in SAMPLE:
        for town, kind, name in re.findall(r"(\w+), by the (\w+) (\w+)[.,]", text):
            assert TOWNS[town][:2] == (kind, name)
        for things, material in re.findall(r"(\w+),? made of (\w+)", text):
            assert (things, material) in THINGS.values()
        for person, tool in re.findall(WHO + r" worked with (?:her|his) (\w+)", text):
            assert tool in {TRADES[trade][0] for trade in _trades_of(person, text) if trade in TRADES}, (person, tool)


def _trades_of(person: str, text: str) -> list[str]:
    patterns = (
        rf"{person} the (\w+)",
        rf"a (\w+) called {person}",
        rf"{person}, a (\w+) from",
        rf"{person} was a (\w+) in",
    )
    found = [trade for pattern in patterns for trade in re.findall(pattern, text)]
    return found or re.findall(rf"There was a (\w+) in \w+ whose name was {person}", text)


def test_answers_are_right() -> None:
    answers = 0
    for text in SAMPLE:
        if found := re.search(r"How many \w+ does (\w+) have\? (\w+)\.", text):
            assert _counts_by_hand(text)[0][found[1]] == VALUE[found[2].lower()]
            answers += 1
    assert answers > 10


def test_a_seed_gives_one_story_and_splits_differ() -> None:
    assert story("x/1") == story("x/1")
    assert story("x/1") != story("x/2")
    assert not set(SAMPLE) & {text for text, _ in itertools.islice(stories("train"), 2000)}


def test_information_is_that_of_the_choices() -> None:
    choose = Chooser("seed")
    choose.one("abcd")
    choose.number(1, 8)
    assert choose.nats == pytest.approx(math.log(4) + math.log(8))


def test_packaged_texts_are_the_generators_output() -> None:
    for path, split in ((TRAIN_TEXT, "train"), (VALID_TEXT, "valid")):
        text = path.read_text(encoding="utf-8")
        assert text == document(split, len(text))[0]
        assert text.endswith(f"\n{END}\n")


def test_people_keep_their_trade_town_and_pronoun() -> None:
    for text in SAMPLE:
        for name in set(re.findall("|".join(NAMES), text)):
            assert len(set(_trades_of(name, text)) & TRADES.keys()) == 1
            assert len(set(re.findall(rf"{name} of (\w+)", text))) <= 1
            other = {"she": "his", "he": "her"}[NAMES[name][0]]
            assert not re.search(rf"{name}(?: the \w+| of \w+)? worked with {other} ", text)

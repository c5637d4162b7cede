"""Generates short stories whose sentences depend on one another, so that a language model has something to learn.

A story introduces two people with names, trades, towns, animals and counted things, lets them give, buy and travel, and
then refers back: who has how many now, what day it is, where somebody lives. Facts of the world (the river of a town,
the tool of a trade) are the same in all stories and must be known by heart; counts must be worked out. Every free
choice is drawn by `Chooser`, which adds up its information: the stories' true entropy is known, and with it the
perplexity that no model can beat.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

END = "<|endoftext|>"
"""Stands on a line of its own after every story; one token."""

NUMBERS = (
    *("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")

WOMEN = (
    *("Anna", "Bela", "Clara", "Dora", "Elsa", "Frieda", "Greta", "Hanna"),
    *("Ida", "Klara", "Lena", "Mina", "Nora", "Olga", "Paula", "Rosa"),
)
MEN = (
    *("Adam", "Boris", "Carl", "David", "Emil", "Felix", "Georg", "Hugo"),
    *("Ivan", "Jonas", "Karl", "Leo", "Martin", "Oskar", "Peter", "Viktor"),
)
# name -> (subject, possessive)
NAMES = {**dict.fromkeys(WOMEN, ("she", "her")), **dict.fromkeys(MEN, ("he", "his"))}
# town -> (what it lies by, name of that, what stands in its middle)
TOWNS = {
    "Alden": ("river", "Wend", "clock"),
    "Brask": ("lake", "Ombra", "well"),
    "Corvin": ("river", "Tarn", "statue"),
    "Dunmore": ("sea", "Keld", "lighthouse"),
    "Elmstead": ("forest", "Harrow", "oak"),
    "Farrow": ("lake", "Silt", "bridge"),
    "Gorsk": ("hill", "Brann", "tower"),
    "Hallow": ("forest", "Mirk", "chapel"),
    "Istra": ("sea", "Lune", "market"),
    "Jarrow": ("hill", "Cobb", "mill"),
    "Kestrel": ("river", "Vance", "fountain"),
    "Lorne": ("lake", "Perl", "school"),
    "Marden": ("forest", "Thorn", "barn"),
    "Norwick": ("sea", "Skarn", "harbour"),
    "Olven": ("hill", "Rusk", "castle"),
    "Padmere": ("lake", "Glint", "theatre"),
    "Quill": ("river", "Ester", "library"),
    "Rosvik": ("sea", "Haldis", "customs house"),
    "Selby": ("hill", "Druin", "gate"),
    "Torvald": ("forest", "Asken", "inn"),
}
# trade -> (tool, what it makes)
TRADES = {
    "baker": ("oven", "bread"),
    "smith": ("hammer", "nails"),
    "weaver": ("loom", "cloth"),
    "potter": ("wheel", "bowls"),
    "tailor": ("needle", "coats"),
    "painter": ("brush", "pictures"),
    "carpenter": ("saw", "tables"),
    "fisher": ("net", "soup"),
    "writer": ("pen", "books"),
    "gardener": ("spade", "roses"),
    "miller": ("stone", "flour"),
    "mason": ("chisel", "walls"),
    "brewer": ("kettle", "beer"),
    "cooper": ("plane", "barrels"),
}
# animal -> (plural, food, sound)
ANIMALS = {
    "cat": ("cats", "milk", "purred"),
    "dog": ("dogs", "bones", "barked"),
    "horse": ("horses", "hay", "neighed"),
    "cow": ("cows", "grass", "mooed"),
    "duck": ("ducks", "worms", "quacked"),
    "sheep": ("sheep", "clover", "bleated"),
    "owl": ("owls", "mice", "hooted"),
    "bee": ("bees", "nectar", "buzzed"),
    "pig": ("pigs", "acorns", "grunted"),
    "hen": ("hens", "corn", "clucked"),
    "crow": ("crows", "seeds", "cawed"),
    "frog": ("frogs", "flies", "croaked"),
}
# thing -> (plural, material)
THINGS = {
    "lamp": ("lamps", "glass"),
    "coin": ("coins", "silver"),
    "basket": ("baskets", "straw"),
    "key": ("keys", "iron"),
    "button": ("buttons", "ivory"),
    "ring": ("rings", "gold"),
    "chair": ("chairs", "wood"),
    "cup": ("cups", "clay"),
    "scarf": ("scarves", "wool"),
    "candle": ("candles", "wax"),
    "kite": ("kites", "paper"),
    "boot": ("boots", "leather"),
    "bell": ("bells", "bronze"),
    "rope": ("ropes", "hemp"),
    "shirt": ("shirts", "linen"),
    "pipe": ("pipes", "copper"),
}
WEATHER = {
    "rain": "an umbrella",
    "snow": "a warm hat",
    "wind": "a heavy coat",
    "sun": "a straw hat",
    "fog": "a lantern",
}
RELATIONS = ("friend", "neighbour", "cousin")


class Chooser:
    """A seeded source of choices that knows how much information it has given away.

    Attributes:
        nats: information of all choices so far, in nats.
    """

    def __init__(self, seed: str) -> None:
        """Seed the choices; the same text gives the same choices on every machine and Python version."""
        self._random = random.Random(seed)
        self.nats = 0.0

    def one(self, options: Sequence[T]) -> T:
        """Draw one of the options, all equally likely."""
        self.nats += math.log(len(options))
        return options[self._random.randrange(len(options))]

    def number(self, low: int, high: int) -> int:
        """Draw a whole number from low to high, both included."""
        return self.one(range(low, high + 1))


@dataclass
class Person:
    """Somebody in a story.

    Attributes:
        count: how many of the story's things the person has now.
    """

    name: str
    trade: str
    town: str
    animal: str
    count: int

    @property
    def he(self) -> str:
        """Subject pronoun."""
        return NAMES[self.name][0]

    @property
    def his(self) -> str:
        """Possessive pronoun."""
        return NAMES[self.name][1]


@dataclass
class Scene:
    """What a story has established so far."""

    choose: Chooser
    first: Person
    second: Person
    thing: str
    colour: str
    day: int

    def amount(self, number: int) -> str:
        """Return the number with the thing in its right form: `one lamp`, `three lamps`."""
        return f"{NUMBERS[number]} {self.thing if number == 1 else self.things}"

    @property
    def things(self) -> str:
        """Plural of the story's thing."""
        return THINGS[self.thing][0]

    def mention(self, person: Person) -> str:
        """Name somebody, in two of three cases with what was said in the beginning: the trade or the town."""
        return f"{person.name}{self.choose.one(('', f' the {person.trade}', f' of {person.town}'))}"

    def next_day(self) -> str:
        """Go on by a day and return its name."""
        self.day = (self.day + 1) % len(DAYS)
        return DAYS[self.day]


def story(seed: str) -> tuple[str, float]:
    """Return a story (one line, no end mark) and the information in its choices, in nats."""
    choose = Chooser(seed)
    scene = _cast(choose)
    sentences = [*_introduction(scene), *_possessions(scene)]
    events: list[Callable[[Scene], list[str]]] = [_gift, _purchase, _journey, _weather, _work]
    for _ in range(choose.number(2, 3)):
        event = choose.one(events)
        events.remove(event)
        sentences += event(scene)
    sentences += choose.one((_question, _comparison))(scene)
    sentences += _ending(scene)
    return " ".join(sentences), choose.nats


def stories(split: str) -> Iterator[tuple[str, float]]:
    """Yield the stories of a split (`train`, `valid`) for ever; splits share no seed."""
    index = 0
    while True:
        yield story(f"{split}/{index}")
        index += 1


def document(split: str, size: int) -> tuple[str, float]:
    """Return whole stories of a split, of at least `size` characters, and their information in nats."""
    parts: list[str] = []
    length, nats = 0, 0.0
    for text, information in stories(split):
        parts.append(f"{text}\n{END}\n")
        length += len(parts[-1])
        nats += information
        if length >= size:
            break
    return "".join(parts), nats


def _cast(choose: Chooser) -> Scene:
    """Choose who is in the story and with what."""
    name = choose.one(list(NAMES))
    other = choose.one([n for n in NAMES if n != name])
    trade = choose.one(list(TRADES))
    animal = choose.one(list(ANIMALS))
    town = choose.one(list(TOWNS))
    first = Person(name, trade, town, animal, choose.number(4, 12))
    second = Person(
        other,
        choose.one([t for t in TRADES if t != trade]),
        choose.one([t for t in TOWNS if t != town]),
        choose.one([a for a in ANIMALS if a != animal]),
        choose.number(0, 4),
    )
    return Scene(choose, first, second, choose.one(list(THINGS)), choose.one(COLOURS), choose.number(0, len(DAYS) - 1))


def _introduction(scene: Scene) -> list[str]:
    """Introduce both people; the surroundings of a town follow from its name."""
    a, b = scene.first, scene.second
    kind, name, middle = TOWNS[a.town]
    opening = scene.choose.one(
        (
            f"{a.name} the {a.trade} lived in {a.town}, by the {kind} {name}.",
            f"In {a.town}, by the {kind} {name}, there lived a {a.trade} called {a.name}.",
            f"There was a {a.trade} in {a.town} whose name was {a.name}, and {a.his} house stood near the {middle}.",
        )
    )
    relation = scene.choose.one(RELATIONS)
    meeting = scene.choose.one(
        (
            f"{a.his.capitalize()} {relation} {b.name} was a {b.trade} in {b.town}, where the {TOWNS[b.town][2]} is.",
            f"{a.he.capitalize()} had a {relation} called {b.name}, a {b.trade} from {b.town}.",
        )
    )
    return [opening, meeting]


def _possessions(scene: Scene) -> list[str]:
    """Say who has how many things and which animals."""
    a, b = scene.first, scene.second
    material = THINGS[scene.thing][1]
    have = scene.choose.one(
        (
            f"{a.name} had {NUMBERS[a.count]} {scene.colour} {scene.things} made of {material},"
            f" and {b.name} had {NUMBERS[b.count]}.",
            f"Of all the {scene.colour} {scene.things}, made of {material}, {b.name} had {NUMBERS[b.count]},"
            f" but {a.name} had {NUMBERS[a.count]}.",
        )
    )
    cattle, others = ANIMALS[a.animal], ANIMALS[b.animal]
    keep = scene.choose.one(
        (
            f"{a.name} kept {cattle[0]} and fed them {cattle[1]}.",
            f"{a.name} kept {cattle[0]}, and {b.name} kept {others[0]} and fed them {others[1]}.",
        )
    )
    return [have, keep]


def _gift(scene: Scene) -> list[str]:
    """One gives some things to the other; both new counts follow."""
    giver, taker = (
        (scene.first, scene.second) if scene.first.count > scene.second.count else (scene.second, scene.first)
    )
    given = scene.choose.number(1, min(3, giver.count - 1))
    giver.count -= given
    taker.count += given
    day, who = scene.next_day(), scene.mention(giver)
    deed = scene.choose.one(
        (
            f"On {day} {who} gave {scene.amount(given)} to {taker.name}.",
            f"On {day} {taker.name} came and asked for {scene.amount(given)}, and {who} said yes.",
        )
    )
    return [deed, f"Now {giver.name} had {NUMBERS[giver.count]} left and {taker.name} had {NUMBERS[taker.count]}."]


def _purchase(scene: Scene) -> list[str]:
    """One buys some more in the market; the new count follows."""
    buyer = scene.choose.one((scene.first, scene.second))
    bought = scene.choose.number(1, 4)
    buyer.count += bought
    more = f"{NUMBERS[bought]} more {scene.thing if bought == 1 else scene.things}"
    return [f"On {scene.next_day()} {scene.mention(buyer)} bought {more}, so {buyer.he} had {NUMBERS[buyer.count]}."]


def _journey(scene: Scene) -> list[str]:
    """One visits the other's town and sees what is known to be there."""
    guest, host = scene.choose.one(((scene.first, scene.second), (scene.second, scene.first)))
    kind, name, middle = TOWNS[host.town]
    seen = scene.choose.one(
        (
            f"swam in the {name}" if kind in ("river", "lake", "sea") else f"walked in the {name} {kind}",
            f"sat by the {middle}",
        )
    )
    day = scene.next_day()
    return [
        f"On {day} {guest.name} went from {guest.town} to {host.town} to see {scene.mention(host)}, and they {seen}."
    ]


def _weather(scene: Scene) -> list[str]:
    """The weather decides what somebody takes along."""
    person = scene.choose.one((scene.first, scene.second))
    weather = scene.choose.one(list(WEATHER))
    return [f"There was {weather} on {scene.next_day()}, so {scene.mention(person)} took {WEATHER[weather]}."]


def _work(scene: Scene) -> list[str]:
    """A trade decides the tool and what is made."""
    worker = scene.choose.one((scene.first, scene.second))
    tool, product = TRADES[worker.trade]
    return [f"All {scene.next_day()} {scene.mention(worker)} worked with {worker.his} {tool} and made {product}."]


def _question(scene: Scene) -> list[str]:
    """Ask for something that was said and answer it."""
    person = scene.choose.one((scene.first, scene.second))
    question, answer = scene.choose.one(
        (
            (f"Where does {person.name} live?", f"In {person.town}."),
            (f"What is {person.name}?", f"A {person.trade}."),
            (f"How many {scene.things} does {person.name} have?", f"{NUMBERS[person.count].capitalize()}."),
            (f"Who lives in {person.town}?", f"{person.name}."),
            (f"What colour are the {scene.things}?", f"{scene.colour.capitalize()}."),
            (f"What does {person.name} make?", f"{TRADES[person.trade][1].capitalize()}."),
        )
    )
    return [question, answer]


def _comparison(scene: Scene) -> list[str]:
    """Say who has more things."""
    a, b = scene.first, scene.second
    if a.count == b.count:
        return [f"In the end {a.name} and {b.name} both had {NUMBERS[a.count]} {scene.colour} {scene.things}."]
    more, less = (a, b) if a.count > b.count else (b, a)
    return [f"In the end {more.name} had {NUMBERS[more.count]} {scene.colour} {scene.things}, more than {less.name}."]


def _ending(scene: Scene) -> list[str]:
    """Close with the way home, the animals' sound or both trades."""
    a, b = scene.first, scene.second
    animals, _, sound = ANIMALS[a.animal]
    return [
        scene.choose.one(
            (
                f"Then {a.name} went home to {a.town} and {b.name} to {b.town}.",
                f"That night {a.name} slept well in {a.town}, and in the yard the {animals} {sound}.",
                f"And {a.name} the {a.trade} and {b.name} the {b.trade} were happy.",
            )
        )
    ]

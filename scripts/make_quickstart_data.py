"""Make recipes/data/orders.*.jsonl: short order sentences and the JSON that they stand for.

The held-out rows share no value with the training rows: no first name, surname, item word, city, quantity or price.
A model can answer them only by reading the sentence, never by recalling a training answer. Half of the held-out rows
are also phrased in ways that no training row uses. tests/test_quickstart_data.py holds all of this, and that the
committed files are what this script writes.

    python scripts/make_quickstart_data.py [DIRECTORY]
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NUM_TRAIN = 400
NUM_TEST = 80
# The price is a JSON number that keeps its cents, which json.dumps would not write.
ANSWER = '{{"customer": "{customer}", "item": "{item}", "quantity": {quantity}, "price": {price}, "city": "{city}"}}'
SYSTEM = "Reply with JSON: customer, item, quantity, price, city."


@dataclass(frozen=True)
class Values:
    """What the sentences of one side may be filled with."""

    first_names: list[str]
    surnames: list[str]
    adjectives: list[str]
    nouns: list[str]
    cities: list[str]
    # Residues of n mod 5 that quantities and whole prices may have, so that the two sides share no number.
    residues: tuple[int, ...]
    cents: tuple[str, ...]


TRAIN = Values(
    first_names=(
        "Ada Boris Carla Dmitri Elena Farid Greta Hugo Ines Jamal Kirsten Leo Mira Nadia Oscar Paula Quentin Rosa "
        "Stefan Tara Umar Vera Walter Ximena Yusuf Zoe Anton Bianca Cedric Dalia Emil Fiona Gustav Hana Igor Julia "
        "Karim Lena Marco Nora Olaf Petra Rafael Sonja Tomas Ursula Viktor Wanda"
    ).split(),
    surnames=(
        "Abbott Baker Castro Dahl Eriksen Fischer Garcia Hansen Ivanov Jensen Kowalski Larsen Moreau Novak Okafor "
        "Petrov Quinn Rossi Schmidt Tanaka Urban Vargas Weber Yilmaz Zhang Andersson Bianchi Cooper Duarte Evans "
        "Ferrari Gruber Haddad Jansen Keller Lindholm Mendoza Nielsen Ortiz Pereira Ramos Silva Torres Vidal Wagner"
    ).split(),
    adjectives=(
        "blue oak leather folding steel cotton large round vintage ceramic wireless plastic striped heavy bamboo small "
        "green padded copper woollen portable square tall yellow rubber marble silver soft wide canvas"
    ).split(),
    nouns=(
        "chairs|desk lamps|water bottles|notebooks|coffee mugs|bath towels|garden gloves|wall clocks|picture frames|"
        "backpacks|pillows|door handles|paint brushes|candles|bicycle pumps|umbrellas|shelves|hammers|tea pots|"
        "curtains|suitcases|flower pots|tool boxes|kitchen knives|rugs|speakers|mirrors|tents|baskets|keyboards"
    ).split("|"),
    cities=(
        "Lisbon|Hamburg|Oslo|Krakow|Toronto|Nairobi|Lyon|Seville|Dublin|Prague|Austin|Osaka|Leeds|Geneva|Athens|Turin|"
        "Boston|Helsinki|Vienna|Porto|Denver|Antwerp|Zurich|Malaga|Gdansk|Bristol|Bergen|Naples|Chicago|Utrecht|"
        "Warsaw|Mumbai|Lima|Cardiff|Bremen|Salzburg|New York|San Diego|Cape Town|Tel Aviv|Buenos Aires"
    ).split("|"),
    residues=(0, 1, 3, 4),
    cents=("00", "20", "35", "40", "50", "75", "80", "90", "95", "99"),
)
TEST = Values(
    first_names="Aurora Benedict Clara Damian Esther Felipe Gloria Henrik Isabel Jonas Katja Lorenzo Miriam".split(),
    surnames="Aldridge Bergman Conti Delgado Engel Fontaine Gupta Holmes Ishikawa Jovanovic Kaplan Lombardi".split(),
    adjectives="red walnut glass electric iron linen narrow antique waterproof white velvet light".split(),
    nouns=(
        "stools|table fans|lunch trays|calendars|soup bowls|beach mats|snow shovels|alarm bells|photo albums|"
        "scarves|blankets|drawer knobs|rolling pins|lanterns|tripods|cushions"
    ).split("|"),
    cities=(
        "Madrid|Berlin|Montreal|Cairo|Nantes|Valencia|Glasgow|Brno|Houston|Kyoto|Basel|Genoa|Seattle|Tampere|"
        "Hong Kong|Santa Fe"
    ).split("|"),
    residues=(2,),
    cents=("10", "25", "45", "60", "85"),
)

# {c} customer, {i} item, {q} quantity, {p} price of one, {t} city; {r} is a reference number and {d} a day, which
# belong to no key and have to be left out of the answer.
TRAIN_PHRASINGS = [
    "{c} from {t} orders {q} {i} at {p} each.",
    "Please send {q} {i} to {c} in {t}, {p} each.",
    "{q} {i} for {c}, {t}. Unit price {p}.",
    "We need {q} {i} at {p} a piece, delivered to {c} in {t}.",
    "Hi, this is {c}. I would like {q} {i} for {p} each, shipped to {t}.",
    "Ship to {t}: {q} {i}, customer {c}, price {p}.",
    "{c} wants {q} {i}. They cost {p} each and go to {t}.",
    "New order from {t}: {c} takes {q} {i} for {p} each.",
    "At {p} each, {c} will take {q} {i}. Send them to {t}.",
    "Could you deliver {q} {i} to {t}? The name is {c}, the price {p}.",
    "Order {r}: {q} {i}, {p} each, {c}, {t}.",
    "{c} ({t}) bought {q} {i}, each for {p}.",
    "Today {c} asked for {q} {i} at {p}. Delivery to {t}.",
    "For {c} in {t}: {i}, {q} of them, {p} each.",
    "{i}: {q} pieces at {p}. Buyer: {c}. City: {t}.",
    "Put me down for {q} {i} at {p} each. {c}, {t}.",
    "Our customer {c} in {t} would like {q} {i}, price {p} each.",
    "The {i} for {c} are {p} each. Send {q} to {t} by {d}.",
    "{t}, {d}: {c} ordered {q} {i} for {p} each.",
    "Send {c} {q} {i}. Price per unit {p}, address in {t}.",
    "Buyer {c}, {t}, {q} x {i}, {p} each.",
    "I am {c} and I live in {t}. {q} {i} at {p} each, please.",
    "Can {c} get {q} {i} for {p} each? Ship to {t} before {d}.",
    "{c} called from {t} about {q} {i} at {p} each.",
    "Ref {r}: {c} wants {q} {i} in {t}, {p} each.",
    "Please reserve {q} {i} for {c}. Price {p}, pick-up in {t}.",
    "To {t}, for {c}: {q} {i} at {p}.",
    "{p} each is fine, so {q} {i} to {c} in {t}.",
    "It is {d} and {c} in {t} still waits for {q} {i} at {p} each.",
    "{c} is paying {p} for each of {q} {i} sent to {t}.",
    "Purchase by {c}: {i}, quantity {q}, price {p}, city {t}.",
    "Deliver to {c}, {t}, on {d}: {q} {i} at {p} each.",
]
# Their words stand in no training sentence in this order; half of the held-out rows use them.
TEST_PHRASINGS = [
    "Mail from {c}: {q} {i} are wanted in {t}, we agreed on {p} each.",
    "{t} branch, {q} {i}, {p} per unit, sold to {c}.",
    "Would you pack {q} {i} for {c}? Each is {p}. They go to {t}.",
    "{c} pays {p} a piece and gets {q} {i} in {t}.",
    "In {t}, {c} is waiting for {q} {i}, {p} each, order {r}.",
    "Each costs {p}: {q} {i} for our buyer {c} from {t}.",
    "Before {d}, please: {q} {i}, to {c} in {t}, {p} each.",
    "Note: {c}, city {t}, asked for {i}, {q} pieces, {p} each.",
]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


class Draw:
    """Random choices that are the same in every Python version: only `Random.random` is promised to be."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def below(self, bound: int) -> int:
        """Draw one of 0 .. bound - 1."""
        return int(self._random.random() * bound)

    def one(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[self.below(len(options))]


def make_row(draw: Draw, values: Values, phrasing: str) -> dict[str, list[dict[str, str]]]:
    """Fill one phrasing; the answer's keys always stand in the same order."""
    order = {
        "customer": f"{draw.one(values.first_names)} {draw.one(values.surnames)}",
        "item": f"{draw.one(values.adjectives)} {draw.one(values.nouns)}",
        "quantity": draw.one([n for n in range(2, 100) if n % 5 in values.residues]),
        "price": f"{draw.one([n for n in range(3, 150) if n % 5 in values.residues])}.{draw.one(values.cents)}",
        "city": draw.one(values.cities),
    }
    sentence = phrasing.format(
        c=order["customer"],
        i=order["item"],
        q=order["quantity"],
        p=order["price"],
        t=order["city"],
        r=1000 + draw.below(9000),
        d=draw.one(DAYS),
    )
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": sentence},
            {"role": "assistant", "content": ANSWER.format(**order)},
        ]
    }


def make_rows() -> dict[str, list[dict[str, list[dict[str, str]]]]]:
    """Make both files' rows, by file name."""
    draw = Draw(seed=7)
    train = [make_row(draw, TRAIN, TRAIN_PHRASINGS[k % len(TRAIN_PHRASINGS)]) for k in range(NUM_TRAIN)]
    # Alternating, so that `--limit` sees both kinds.
    phrasings = [
        phrasing
        for k in range(NUM_TEST // 2)
        for phrasing in (TRAIN_PHRASINGS[k % len(TRAIN_PHRASINGS)], TEST_PHRASINGS[k % len(TEST_PHRASINGS)])
    ]
    return {"orders.train.jsonl": train, "orders.test.jsonl": [make_row(draw, TEST, p) for p in phrasings]}


def main(directory: Path) -> None:
    for name, rows in make_rows().items():
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        (directory / name).write_text(text, encoding="utf-8")
        print(f"{directory / name}: {len(rows)} rows, {len(text)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "recipes" / "data")

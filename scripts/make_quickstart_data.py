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

    def numbers(self, low: int, high: int) -> list[int]:
        """The numbers of this side from low up to high."""
        return [n for n in range(low, high) if n % 5 in self.residues]


TRAIN = Values(
    first_names=(
        "Ada Adam Adele Agnes Aidan Alan Albert Alex Alina Amanda Amir Amy Ana Andre Andrea Angela Anita Anna "
        "Anton Astrid Audrey Barbara Beatrice Ben Bernard Bianca Boris Brenda Brian Bruno Camille Carl Carla "
        "Carmen Carol Cecil Cedric Celia Chloe Chris Claire Colin Connor Craig Daisy Dalia Daria David Dean "
        "Denise Derek Diana Dmitri Dora Doris Dylan Edgar Edith Elena Eli Elise Ella Elsa Emil Emma Eric Erin "
        "Ethan Eva Evan Farid Fatima Fiona Flora Frank Fred Gabriel Gavin Gerald Gina Grace Greg Greta Gustav Guy "
        "Hana Hannah Harold Harry Hassan Hazel Heidi Helen Holly Howard Hugo Ian Ida Igor Ines Ingrid Irene Iris "
        "Ivan Ivy Jacob Jamal Jasmine Jason Jean Jenny Jeremy Joan Joel Jorge Joseph Joyce Juan Judith Julia "
        "Karen Karim Karl Kate Keith Kelly Kevin Kirsten Kurt Lara Laura Lauren Leah Leila Lena Leo Leon Liam "
        "Lily Linda Lisa Logan Lois Louis Lucia Lucy Luis Luke Lydia Mabel Marco Maria Marie Mario Mark Marta "
        "Mason Max Maya Megan Mia Miles Mira Molly Monica Nadia Nancy Naomi Natalie Nathan Neil Nina Nora Olga "
        "Oliver Olivia Omar Oscar Owen Pablo Patrick Paul Paula Pedro Penny Petra Philip Phoebe Rachel Rafael "
        "Ralph Raymond Rebecca Rita Roger Rosa Roy Ruby Ruth Ryan Sally Samuel Sandra Scott Sean Selma Sofia "
        "Sonja Sophie Stefan Stella Susan Tara Tess Theo Tina Tobias Tomas Tyler Ursula Vera Victor Viktor "
        "Vincent Viola Walter Wanda Wayne Wendy Xavier Ximena Yara Yusuf Yvonne Zara Zoe"
    ).split(),
    surnames=(
        "Abbott Adams Allen Anders Archer Ashby Bailey Baker Banks Barnes Becker Bell Bennett Berg Bianchi Bishop "
        "Black Blair Blake Bond Bowen Boyd Bradley Brandt Brooks Brown Bryant Burke Burns Butler Byrne Cameron "
        "Carlson Carter Castro Chan Chapman Chen Clark Cohen Cole Collins Cook Cooper Costa Cox Cruz Curtis Dahl "
        "Dalton Davis Dawson Diaz Dixon Doyle Duarte Duncan Dunn Eriksen Evans Ferrari Fischer Fisher Fleming "
        "Flores Ford Foster Fox Franklin Fraser Garcia Gardner Gibson Gomez Gordon Graham Grant Gray Greene "
        "Griffin Gruber Haddad Hall Hansen Harper Harris Hart Hayes Henderson Herrera Hill Hoffman Howell Hughes "
        "Hunt Hunter Ivanov Jackson Jansen Jensen Johnson Jones Jordan Joshi Kane Kaur Keller Kelley Kennedy Khan "
        "Kim King Klein Knight Kovacs Kowalski Kumar Lambert Lane Larsen Lawson Lee Lewis Lin Lindholm Lopez "
        "Lynch Marsh Marshall Mason Matthews Mendoza Meyer Miller Mills Mitchell Moore Morales Moreau Morgan "
        "Morris Murphy Murray Nash Navarro Nelson Newman Newton Nielsen Novak Okafor Oliver Olsen Ortiz Osborne "
        "Owens Page Palmer Parker Patel Payne Pereira Perez Perry Peters Petrov Phillips Pierce Porter Potter "
        "Powell Quinn Ramos Reed Reyes Reynolds Rice Richards Riley Rivera Roberts Rogers Romero Rose Ross Rossi "
        "Russell Sanders Santos Schmidt Schneider Scott Shaw Silva Simpson Singh Smith Snyder Spencer Stevens "
        "Stone Sullivan Tanaka Taylor Thompson Torres Tucker Turner Vargas Vega Wagner Walker Wallace Walsh Ward "
        "Warren Watson Weber Webster Wells West White Williams Wilson Wong Wood Wright Yang Yilmaz Young Zhang "
        "Ziegler"
    ).split(),
    adjectives=(
        "oak leather folding steel cotton vintage ceramic wireless striped bamboo padded copper woollen portable "
        "tall rubber marble silver soft wide canvas black brown pink purple orange grey golden brass bronze "
        "wooden silk satin denim nylon felt pine maple cherry stone clay crystal digital electronic compact slim "
        "thin long short big tiny giant curved flat oval hollow smooth rough glossy matte polished painted woven "
        "knitted quilted insulated magnetic solar cordless adjustable stackable foldable washable reusable "
        "handmade classic rustic plain floral dotted checkered double single spare outdoor indoor winter summer"
    ).split(),
    nouns=(
        "chairs|desk lamps|water bottles|notebooks|coffee mugs|bath towels|garden gloves|wall clocks|"
        "picture frames|backpacks|pillows|door handles|paint brushes|candles|bicycle pumps|umbrellas|shelves|"
        "hammers|tea pots|curtains|suitcases|flower pots|tool boxes|kitchen knives|rugs|speakers|mirrors|tents|"
        "baskets|keyboards|tables|sofas|benches|cabinets|drawers|desks|beds|mattresses|sheets|napkins|plates|"
        "cups|glasses|jars|jugs|pans|kettles|toasters|ovens|spoons|forks|trays|bins|buckets|brooms|mops|sponges|"
        "ladders|drills|saws|screws|nails|bolts|hinges|locks|keys|chains|ropes|hooks|cables|chargers|batteries|"
        "lamps|bulbs|torches|radios|cameras|phones|tablets|monitors|printers|scanners|mice|headphones|"
        "microphones|pens|pencils|markers|erasers|rulers|folders|envelopes|stamps|stickers|cards|posters|maps|"
        "globes|books|bags|wallets|belts|hats|gloves|socks|shoes|boots|sandals|jackets|coats|shirts|sweaters|"
        "dresses|skirts|aprons|ties|rings|bracelets|watches|sunglasses|balls|rackets|skates|helmets|bikes|"
        "scooters|kites|puzzles|dolls|toys|drums|guitars|flutes|violins|vases|plants|seeds|hoses|rakes|spades|"
        "wheelbarrows|fences|gates|doors|windows|tiles|bricks|planks|carpets"
    ).split("|"),
    cities=(
        "Lisbon|Hamburg|Oslo|Krakow|Toronto|Nairobi|Lyon|Seville|Dublin|Prague|Austin|Osaka|Leeds|Geneva|Athens|"
        "Turin|Helsinki|Vienna|Porto|Denver|Antwerp|Zurich|Malaga|Gdansk|Bristol|Bergen|Naples|Utrecht|Warsaw|"
        "Mumbai|Lima|Cardiff|Bremen|Salzburg|Cape Town|Tel Aviv|Buenos Aires|Milan|Venice|Florence|Bologna|"
        "Palermo|Munich|Cologne|Frankfurt|Stuttgart|Leipzig|Dresden|Hanover|Bonn|Graz|Linz|Bern|Lausanne|"
        "Brussels|Ghent|Bruges|Amsterdam|Rotterdam|Delft|Leiden|Copenhagen|Aarhus|Stockholm|Malmo|Uppsala|Turku|"
        "Riga|Vilnius|Tallinn|Budapest|Bratislava|Zagreb|Split|Belgrade|Sofia|Bucharest|Istanbul|Ankara|Izmir|"
        "Marseille|Nice|Toulouse|Bordeaux|Lille|Rennes|Barcelona|Bilbao|Granada|Zaragoza|Braga|Coimbra|Edinburgh|"
        "Aberdeen|Dundee|Manchester|Liverpool|Birmingham|Bath|Exeter|Belfast|Cork|Galway|Limerick|Vancouver|"
        "Calgary|Ottawa|Quebec|Winnipeg|Dallas|Miami|Atlanta|Phoenix|Portland|Detroit|Cleveland|Memphis|"
        "Nashville|Orlando|Tampa|Tucson|Omaha|Baltimore|Philadelphia|Pittsburgh|Las Vegas|Mexico City|Havana|"
        "Bogota|Quito|Santiago|Montevideo|Rio de Janeiro|Sao Paulo|Tokyo|Nagoya|Seoul|Busan|Taipei|Manila|Hanoi|"
        "Bangkok|Singapore|Jakarta|Delhi|Chennai|Karachi|Dhaka|Dubai|Doha|Beirut|Amman|Casablanca|Tunis|Lagos|"
        "Accra|Dakar|Durban|Sydney|Melbourne|Perth|Brisbane|Auckland|Wellington"
    ).split("|"),
    residues=(0, 1, 3, 4),
    cents=("00", "20", "35", "40", "50", "75", "80", "90", "95", "99"),
)
# Common words, because the base model cuts a word into other tokens after a quotation mark than after a blank: to copy
# one into JSON is to spell it anew, and a model of this size can spell common words only.
TEST = Values(
    first_names=(
        "Alice Arthur Charles Daniel Edward Emily George Henry Jack James Jane John Martin Michael Peter Robert "
        "Sarah Simon Thomas William"
    ).split(),
    surnames=("Aldridge Bergman Conti Delgado Engel Fontaine Gupta Holmes Ishikawa Jovanovic Kaplan Lombardi").split(),
    adjectives=(
        "blue electric glass green heavy iron large metal modern paper plastic printed red round small square "
        "thick yellow"
    ).split(),
    nouns=(
        "stools|table fans|lunch packs|calendars|soup bowls|beach mats|snow shovels|alarm bells|photo albums|"
        "scarves|blankets|drawer knobs|rolling pins|lanterns|tripods|cushions"
    ).split("|"),
    cities=(
        "Boston|Cambridge|Chicago|London|Los Angeles|New Orleans|New York|Oxford|Paris|Rome|San Diego|"
        "San Francisco|Washington"
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
    "Another order from {t}: {c} takes {q} {i} for {p} each.",
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
    "{p} a piece: {q} {i} for {c} of {t}.",
    "In {t} lives {c}, who needs {q} {i} at {p} each.",
    "For {p} each, {q} {i} go to {c}, {t}.",
    "Hello from {t}! {q} {i} at {p} each for me, {c}.",
    "{t} calling: {c} needs {q} {i} priced at {p}.",
    "Price {p}, item {i}, {q} of them, {t}, name {c}.",
    "We sold {q} {i} to {c} from {t} at {p} each.",
    "Kindly post {q} {i} to {t} for {c} at {p} apiece.",
]
# Their words stand in no training sentence in this order; half of the held-out rows use them.
TEST_PHRASINGS = [
    "Mail from {c}: {q} {i} are wanted in {t}, we agreed on {p} each.",
    "Sold to {c} from {t}: {q} {i}, {p} per unit.",
    "Would you pack {q} {i} for {c}? Each is {p}. They go to {t}.",
    "{c} pays {p} a piece and gets {q} {i} in {t}.",
    "In {t}, {c} is waiting for {q} {i}, {p} each, order {r}.",
    "Each costs {p}: {q} {i} for our buyer {c} from {t}.",
    "Before {d}, please: {q} {i}, to {c} in {t}, {p} each.",
    "Note: {c}, city {t}, asked for {i}, {q} pieces, {p} each.",
]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


class Dealer:
    """Deals from each list as from a deck of cards: every entry once before any comes again.

    Uses `Random.random` only, the one draw that Python promises to be the same in every version.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._decks: dict[Sequence[object], list[object]] = {}

    def __call__(self, options: Sequence[T]) -> T:
        """Deal one of the options."""
        deck = self._decks.setdefault(tuple(options), [])
        if not deck:
            deck.extend(options)
        card: T = deck.pop(int(self._random.random() * len(deck)))  # type: ignore[assignment]
        return card


def make_row(deal: Dealer, values: Values, phrasing: str) -> dict[str, list[dict[str, str]]]:
    """Fill one phrasing; the answer's keys always stand in the same order."""
    order = {
        "customer": f"{deal(values.first_names)} {deal(values.surnames)}",
        "item": f"{deal(values.adjectives)} {deal(values.nouns)}",
        "quantity": deal(values.numbers(2, 100)),
        "price": f"{deal(values.numbers(3, 150))}.{deal(values.cents)}",
        "city": deal(values.cities),
    }
    sentence = phrasing.format(
        c=order["customer"],
        i=order["item"],
        q=order["quantity"],
        p=order["price"],
        t=order["city"],
        r=deal(range(1000, 10_000)),
        d=deal(DAYS),
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
    deal = Dealer(seed=7)
    train = [make_row(deal, TRAIN, TRAIN_PHRASINGS[k % len(TRAIN_PHRASINGS)]) for k in range(NUM_TRAIN)]
    # Alternating, so that `--limit` sees both kinds.
    phrasings = [
        phrasing
        for k in range(NUM_TEST // 2)
        for phrasing in (TRAIN_PHRASINGS[k % len(TRAIN_PHRASINGS)], TEST_PHRASINGS[k % len(TEST_PHRASINGS)])
    ]
    return {"orders.train.jsonl": train, "orders.test.jsonl": [make_row(deal, TEST, p) for p in phrasings]}


def main(directory: Path) -> None:
    for name, rows in make_rows().items():
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        (directory / name).write_text(text, encoding="utf-8")
        print(f"{directory / name}: {len(rows)} rows, {len(text)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "recipes" / "data")

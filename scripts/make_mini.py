"""Generate `mini`, the small data-to-text set that the package carries: invented walking trails.

A line is `key : value | key : value||Text .`, as in E2E: the same context may stand on several lines with
different texts; punctuation is spaced. Names, regions and sights are made up, so a model has to copy them; no
name of the validation or test set occurs in training. Running the script again gives the same bytes.

    python scripts/make_mini.py            (writes lodarepro/data/mini/{train,valid,test}.txt)
"""

import argparse
import random
import re
from dataclasses import dataclass
from pathlib import Path

SEED = 2025
TRAIN_LINES, VALID_LINES, TEST_CONTEXTS = 2000, 200, 150
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "lodarepro" / "data" / "mini"

Record = dict[str, str]  # key to value, in the order of KEYS
KEYS = ("name", "region", "length", "climb", "difficulty", "highlight", "season", "dogs")

# --- values --------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """A list written as words between blanks."""
    return text.split()


STARTS = words("Bram Cor Dun El Fen Gar Hal Ister Kel Lor Mar Nor Os Pel Quar Ros Sel Tar Ul Ven Wes Yar Zan Aber")
MIDDLES = ["a", "e", "i", "o", "en", "in", "er", "al", "", "", "", ""]
FINISHES = words("dale wick by ley mont dor rick wyn gate combe more stow den holt brook vik ness loch sund fell")
CREATURES = words("Heron Badger Otter Falcon Raven Hare Stag Wren Salmon Lynx Curlew Marten Adder Plover")
COLOURS = words("Grey White Red Green Black Silver Golden Long High Old Hidden Windy Stony Quiet")
FEATURES = words("Ridge Valley Moor Wood Gorge Coast Bank Meadow Pass Glen Cliff Marsh Crag Hollow")
WALKS = words("Path Trail Loop Way Walk Circuit Track Round")
LANDS = ("Hills", "Valley", "Moors", "Coast", "Forest", "Highlands", "Fens", "Heath")
SIGHTS = (
    "{} Falls",
    "Lake {}",
    "{} Castle",
    "the {} Stone",
    "{} Abbey",
    "{} Lighthouse",
    "the {} Caves",
    "{} Bridge",
    "Mount {}",
)
MONTHS = words("March April May June July August September October November")


def coined(rng: random.Random) -> str:
    """A made-up place name."""
    return rng.choice(STARTS) + rng.choice(MIDDLES) + rng.choice(FINISHES)


def trail_name(rng: random.Random) -> str:
    """The name of a trail."""
    first = rng.choice(
        (
            coined(rng),
            f"{coined(rng)} {rng.choice(FEATURES)}",
            f"{rng.choice(CREATURES)} {rng.choice(FEATURES)}",
            f"{rng.choice(COLOURS)} {rng.choice(CREATURES)}",
            f"{rng.choice(COLOURS)} {rng.choice(FEATURES)}",
        )
    )
    return f"{rng.choice(('', '', 'The '))}{first} {rng.choice(WALKS)}"


def region(rng: random.Random) -> str:
    """An invented stretch of land."""
    return f"the {coined(rng)} {rng.choice(LANDS)}" if rng.random() < 0.5 else coined(rng)


def season(rng: random.Random) -> str:
    """When to go."""
    if rng.random() < 0.6:
        return rng.choice(("spring", "summer", "autumn", "winter", "all year"))
    first, last = sorted(rng.sample(range(len(MONTHS)), 2))
    return f"{MONTHS[first]} to {MONTHS[last]}"


def effort(rng: random.Random) -> Record:
    """Length, climb and the difficulty that follows from both."""
    km = rng.uniform(1.5, 28)
    metres = max(20, 10 * round(km * rng.uniform(0.5, 8)))
    # Roughly hours on foot: 4 km or 400 m of ascent an hour; people's ratings scatter.
    hours = (km / 4 + metres / 400) * rng.uniform(0.8, 1.25)
    grade = "easy" if hours < 2.5 else "moderate" if hours < 5 else "hard" if hours < 8 else "very hard"
    distance = f"{round(km)} km" if rng.random() < 0.4 else f"{km:.1f} km"
    return {"length": distance, "climb": f"{metres} m", "difficulty": grade}


# --- how a value is put --------------------------------------------------------------------------------

DIFFICULTY = {
    "easy": ("easy", "gentle", "undemanding"),
    "moderate": ("moderate", "intermediate", "moderately demanding"),
    "hard": ("hard", "challenging", "strenuous"),
    "very hard": ("very hard", "extremely demanding", "gruelling"),
}
DOGS = {
    "allowed": ("dogs are allowed", "dogs are welcome", "you may bring your dog"),
    "on a lead": ("dogs must be on a lead", "dogs have to stay on a lead", "you may bring a dog on a lead"),
    "not allowed": ("dogs are not allowed", "dogs have to stay at home", "no dogs are admitted"),
}
SEASONS = {
    "all year": ("all year round", "at any time of the year", "in every season"),
    "autumn": ("in autumn", "in the autumn months"),
    "spring": ("in spring", "in the spring months"),
    "summer": ("in summer", "in the summer months"),
    "winter": ("in winter", "in the winter months"),
}


def realisations(key: str, value: str) -> tuple[str, ...]:
    """Every form in which a text may state a value; each text holds at least one of them."""
    if key == "length":
        return (value, value.replace(" km", " kilometres"))
    if key == "climb":
        return (value, value.replace(" m", " metres"))
    if key == "difficulty":
        return DIFFICULTY[value]
    if key == "dogs":
        return DOGS[value]
    if key == "season":
        if value in SEASONS:
            return SEASONS[value]
        first, last = value.split(" to ")
        return (f"from {first} to {last}", f"between {first} and {last}")
    return (value,)


# --- sentences -----------------------------------------------------------------------------------------

# `{it}` is a pronoun or a noun for the trail, `{a difficulty}` a value with its article. The first
# sentence names the trail; the others are chosen until every fact is stated.
FIRST = (
    "{name} is {a difficulty} walk",
    "{name} is {a difficulty} walk in {region}",
    "{name} is {a difficulty} walk of {length}",
    "{name} is {a difficulty} {length} walk through {region}",
    "{name} is a walk of {length}",
    "{name} is a walk of {length} in {region}",
    "{name} leads through {region}",
    "{name} leads through {region} to {highlight}",
    "{name} leads past {highlight}",
    "{name} takes you to {highlight} in {length}",
    "{name} crosses {region} and passes {highlight}",
    "{name} rises {climb}",
    "{name} rises {climb} over {length}",
    "{name} rises {climb} in {region}",
    "{name} is at its best {season}",
    "{name} in {region} is at its best {season}",
    "{name} , {a difficulty} route in {region} , rises {climb}",
    "{name} , {a difficulty} route of {length} , leads to {highlight}",
    "In {region} you will find {name}",
    "In {region} you will find {name} , {a difficulty} route",
    "In {region} you will find {name} , {a difficulty} route of {length}",
    "At {length} , {name} is {a difficulty} outing",
    "At {length} and with {climb} of ascent , {name} is {difficulty}",
    "Looking for {a difficulty} walk in {region} ? Try {name}",
    "Looking for {a difficulty} walk ? Try {name}",
    "Walkers in {region} should not miss {name}",
    "Walkers who want to see {highlight} should take {name}",
    "To see {highlight} , follow {name}",
    "On {name} , {dogs}",
    "On {name} in {region} , {dogs}",
    "There is {a difficulty} trail in {region} called {name}",
    "There is {a difficulty} trail to {highlight} called {name}",
)
THEN = (
    "{it} is in {region}",
    "{it} runs through {region}",
    "you will find {it} in {region}",
    "{it} is {length} long",
    "{it} covers {length}",
    "plan for {length}",
    "the distance is {length}",
    "{it} climbs {climb}",
    "expect {climb} of ascent",
    "{it} has {climb} of uphill walking",
    "{it} is {difficulty}",
    "the going is {difficulty}",
    "most people find {it} {difficulty}",
    "{it} passes {highlight}",
    "you will see {highlight} on the way",
    "the high point of the day is {highlight}",
    "do not miss {highlight}",
    "{it} is at its best {season}",
    "go {season}",
    "{it} can be walked {season}",
    "we recommend {it} {season}",
    "{dogs}",
    "please note that {dogs}",
    "{it} is {length} long and climbs {climb}",
    "expect {climb} of ascent over {length}",
    "{it} is {difficulty} , with {climb} of ascent",
    "{it} is {difficulty} and covers {length}",
    "{it} covers {length} of {region} and passes {highlight}",
    "over {length} you will climb {climb}",
    "after {length} you reach {highlight}",
    "{it} runs through {region} and passes {highlight}",
    "come {season} to see {highlight}",
    "the walk to {highlight} is finest {season}",
    "{it} is open {season} , and {dogs}",
    "{it} is {difficulty} , and {dogs}",
    "{it} is {difficulty} and at its best {season}",
    "{dogs} , and {highlight} is on the way",
    "{it} is {difficulty} , and {highlight} is the reward",
)
SUBJECTS = ("it", "it", "the trail", "the route", "this walk")


@dataclass(frozen=True)
class Plan:
    """A sentence and the facts that it states."""

    template: str
    keys: frozenset[str]


def plan(template: str) -> Plan:
    """The plan of a template."""
    return Plan(template, frozenset(key for key in KEYS if re.search(rf"\{{(a )?{key}\}}", template)))


OPENERS, FOLLOWERS = tuple(map(plan, FIRST)), tuple(map(plan, THEN))


def fill(rng: random.Random, *, template: str, record: Record) -> str:
    """The sentence with its values and a capital letter, without full stop."""

    def value(match: re.Match[str]) -> str:
        slot = match[1]
        if slot == "it":
            return rng.choice(SUBJECTS)
        key = slot.removeprefix("a ")
        form = rng.choice(realisations(key, record[key]))
        if slot == key:
            return form
        return f"{'an' if form[0] in 'aeiou' else 'a'} {form}"

    text = re.sub(r"\{([a-z ]+)\}", value, template)
    return text[0].upper() + text[1:]


def write_text(rng: random.Random, record: Record) -> str:
    """One text that states every fact of the record once."""
    left = set(record)
    sentences = []
    options = OPENERS
    while left:
        fitting = [p for p in options if p.keys <= left]
        # A sentence with more facts is as likely as one with few, though fewer of them fit.
        size = rng.choice(sorted({len(p.keys) for p in fitting}))
        chosen = rng.choice([p for p in fitting if len(p.keys) == size])
        sentences.append(fill(rng, template=chosen.template, record=record))
        left -= chosen.keys
        options = FOLLOWERS
    return " . ".join(sentences) + " ."


def draw_record(rng: random.Random, taken: set[str]) -> Record:
    """A record of three to seven facts whose name is new."""
    name = trail_name(rng)
    while name.removeprefix("The ") in taken:
        name = trail_name(rng)
    taken.add(name.removeprefix("The "))
    facts = {
        "name": name,
        "region": region(rng),
        **effort(rng),
        "highlight": rng.choice(SIGHTS).format(coined(rng)),
        "season": season(rng),
        "dogs": rng.choice(tuple(DOGS)),
    }
    chosen = {"name", *rng.sample(KEYS[1:], rng.randint(2, 6))}
    return {key: facts[key] for key in KEYS if key in chosen}


def lines_of(rng: random.Random, *, record: Record, texts: int) -> list[str]:
    """Lines with one context and different texts."""
    context = " | ".join(f"{key} : {value}" for key, value in record.items())
    found: dict[str, None] = {}  # an ordered set
    while len(found) < texts:
        found[write_text(rng, record)] = None
    return [f"{context}||{text}" for text in found]


def generate() -> dict[str, list[str]]:
    """The lines of the three files."""
    rng = random.Random(SEED)
    taken: set[str] = set()
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, size in (("train", TRAIN_LINES), ("valid", VALID_LINES)):
        lines = splits[split]
        while len(lines) < size:
            lines += lines_of(rng, record=draw_record(rng, taken), texts=rng.randint(1, 3))
        del lines[size:]
    for _ in range(TEST_CONTEXTS):
        splits["test"] += lines_of(rng, record=draw_record(rng, taken), texts=rng.randint(2, 5))
    return splits


def main(argv: list[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder (default: the package's)")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for split, lines in generate().items():
        (out / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

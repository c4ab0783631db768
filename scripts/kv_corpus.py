"""An endless corpus of made-up records and their descriptions, for pretraining `gpt2-nano`.

A document is a context and a text that states every fact of it. Contexts come as key-value records
(`ship : Ovenna Tal | crew size : 212`) or as triples (`Ovenna_Tal : crewSize : 212`). Almost every name,
number and date is drawn anew, so that the only way to predict the text is to copy from the context: the
skill that fine-tuning on data-to-text presumes. Half of the documents come from domains written by hand,
half from domains that are themselves made up, key by key, so that no list of keys can be learned by heart.
Neither the domains nor the keys of E2E and `mini` occur.

    python scripts/kv_corpus.py --count 5 --seed 1
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Generator = Callable[[random.Random], str]


def words(text: str) -> list[str]:
    """A list written as words between blanks."""
    return text.split()


def choices(text: str) -> list[str]:
    """A list whose items may hold blanks, written with semicolons."""
    return text.split(";") if text else []


# --- names, numbers, dates -----------------------------------------------------------------------------

ONSETS = (
    words(
        "b c d f g h j k l m n p r s t v w z br bl ch cl cr dr fl fr gl gr kr pl pr qu sh sk sl sm sn sp "
        "st str sw th tr tw wh y ph kn vl zh"
    )
    + [""] * 6
)
VOWELS = words("a e i o u a e i o u ai ea ee ia io oa oo ou ui ay ey au ie y ae")
CODAS = (
    words("b ck d f g k l ll m n ng nd nt p r rd rk rn rt s sh ss st t th v x z lm ld mp ns ft nk ch tz") + [""] * 22
)
INNER_CODAS = words("l m n r s") + [""] * 7
PLACE_ENDINGS = words(
    "ton ville burg stad berg mouth ford haven field holm wick by grad pur abad ova ona ia ello mere port "
    "stead more shire ham minster dal nau ingen owice aux etta ano itz"
)
ADJECTIVES = words(
    "Amber Ancient Arctic Black Blue Bold Brave Bright Broken Bronze Calm Cold Copper Crimson Crystal "
    "Dark Deep Distant Double Dusty Early Eastern Empty Endless Fallen First Flying Forgotten Free Frozen "
    "Gentle Giant Glass Golden Grand Great Green Grey Happy Hidden High Hollow Holy Honest Iron Ivory "
    "Jade Just Last Late Lazy Little Lone Long Lost Lucky Mighty Modern Narrow New Noble Northern Old "
    "Open Pale Patient Perfect Plain Proud Purple Quick Quiet Rapid Red Restless Rising Royal Rusty "
    "Sacred Scarlet Second Secret Seven Shining Short Silent Silver Simple Sleeping Small Soft Southern "
    "Steady Still Strange Summer Swift Third Tiny True Twin Upper Velvet Violet Wandering Western White "
    "Wide Wild Winter Wise Wooden Yellow Young"
)
NOUNS = words(
    "Anchor Angel Apple Archer Arrow Ash Autumn Bell Bird Book Bridge Candle Castle Cat Circle Clock "
    "Cloud Compass Corner Crown Dancer Dawn Desert Door Dragon Dream Eagle Echo Ember Empire Engine "
    "Falcon Feather Fire Flame Flower Forest Fortune Fountain Fox Garden Gate Ghost Giant Hammer Harbour "
    "Harp Hawk Heart Hill Horizon Horse House Island Jewel Journey Key King Knight Lady Lake Lamp Lantern "
    "Leaf Letter Light Lily Lion Machine Mask Meadow Memory Mermaid Mill Mirror Moon Morning Mountain "
    "Needle Night Oak Ocean Orchard Owl Palace Paper Pearl Phoenix Pilgrim Pine Planet Poet Prince Queen "
    "Rain Raven River Road Rose Sailor Sea Shadow Shepherd Shore Sky Snow Song Sparrow Spirit Spring Star "
    "Stone Storm Stranger Street Summit Sun Swan Sword Temple Thorn Throne Thunder Tide Tiger Tower "
    "Traveller Tree Valley Violin Voice Voyage Wall Watch Water Wave Well Whale Wheel Willow Wind Window "
    "Wing Winter Witness Wolf Wood World Year"
)
FIRST_NAMES = words(
    "Ada Agnes Albert Alice Amir Anna Arthur Beatrice Boris Carla Carlos Cecil Chen Clara Daniel David "
    "Diana Edith Edward Elena Elias Emma Eric Esther Felix Fiona Frank George Grace Hannah Harold Hassan "
    "Helen Henry Hugo Ida Igor Irene Isaac Ivan Jack James Jane John Joseph Julia Karl Kenji Laura Leo "
    "Lucy Maria Mark Martin Mary Max Mei Michael Mina Nadia Nina Nora Olga Oscar Otto Paul Peter Priya "
    "Rachel Robert Rosa Ruth Samuel Sara Simon Sofia Stefan Susan Tara Thomas Tomas Vera Victor Walter "
    "William Yusuf Zoe"
)
ORG_ENDINGS = choices(
    "Group;Industries;Works;& Sons;Company;Ltd;Brothers;Systems;Laboratories;Holdings;Trust;Foundation;"
    "Institute;Society;Partners;Press;Records;Motors;Studios;Union;Bank;Shipyard;Corporation;Agency"
)
DISHES = words("Stew Soup Pie Salad Bread Pudding Curry Cake Dumplings Pancakes Broth")
ANIMALS = words("Frog Beetle Heron Mouse Lizard Owl Crab Antelope Moth Shark Otter")
HOUSES = words("Tower House Hall Building Centre Court")
MONTHS = words("January February March April May June July August September October November December")


def coin(rng: random.Random) -> str:
    """A made-up word of one to three syllables, capitalised."""
    word = ""
    for _ in range(rng.choices((0, 1, 2), (2, 6, 3))[0]):
        word += rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(INNER_CODAS)
    word += rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
    return word.capitalize() if len(word) > 2 else (word + rng.choice(PLACE_ENDINGS)).capitalize()


def phrase(rng: random.Random) -> str:
    """A name of ordinary words, as ships, books and houses have."""
    return rng.choice(
        (
            lambda: f"The {rng.choice(NOUNS)}",
            lambda: f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
            lambda: f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
            lambda: f"{rng.choice(NOUNS)} of {coin(rng)}",
            lambda: f"{rng.choice(NOUNS)} and {rng.choice(NOUNS)}",
            lambda: f"{coin(rng)} {rng.choice(NOUNS)}",
            lambda: f"{rng.choice(ADJECTIVES)} {coin(rng)}",
            lambda: f"{rng.choice(NOUNS)} {rng.randint(2, 99)}",
            lambda: f"The {rng.choice(NOUNS)} of the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
        )
    )()


def name(rng: random.Random) -> str:
    """Any proper name: coined, of ordinary words, or both."""
    return rng.choice((coin, coin, phrase, lambda r: f"{coin(r)} {coin(r)}"))(rng)


def place(rng: random.Random) -> str:
    """A town or a country."""
    base = rng.choice((coin, coin, lambda r: coin(r) + r.choice(PLACE_ENDINGS)))(rng)
    return rng.choice((base, base, base, f"{rng.choice(ADJECTIVES)} {base}", f"Port {base}", f"{base} {coin(rng)}"))


def person(rng: random.Random) -> str:
    """A person's full name."""
    first = rng.choice(FIRST_NAMES) if rng.random() < 0.6 else coin(rng)
    middle = rng.choice(("", "", "", f" {rng.choice('ABCDEFGHIJKLMNOPRSTVW')}.", f" {coin(rng)}"))
    return f"{first}{middle} {coin(rng)}"


def org(rng: random.Random) -> str:
    """A company or an institution."""
    base = rng.choice((coin, phrase, place))(rng)
    return f"{base} {rng.choice(ORG_ENDINGS)}" if rng.random() < 0.7 else base


def camel(rng: random.Random) -> str:
    """A name in one word with inner capitals, as software has."""
    return rng.choice(
        (
            lambda: rng.choice(ADJECTIVES) + rng.choice(NOUNS),
            lambda: coin(rng) + rng.choice(NOUNS),
            lambda: coin(rng) + rng.choice(("DB", "JS", "Kit", "OS", "Lab", "ML", "Net", "Flow", "Hub")),
            lambda: coin(rng).lower(),
            lambda: f"{coin(rng)} {rng.randint(1, 12)}",
        )
    )()


def code(rng: random.Random) -> str:
    """A designation such as `KX-482` or `B 7719`."""
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(1, 3)))
    return f"{letters}{rng.choice(('-', '', ' '))}{rng.randint(1, 10 ** rng.randint(2, 4))}"


def year(rng: random.Random) -> str:
    """A year."""
    return str(rng.randint(1400, 2025))


def date(rng: random.Random) -> str:
    """A date in one of four spellings."""
    y, month, day = rng.randint(1700, 2025), rng.randrange(12), rng.randint(1, 28)
    return rng.choice(
        (
            f"{y}-{month + 1:02d}-{day:02d}",
            f"{day} {MONTHS[month]} {y}",
            f"{MONTHS[month]} {day} {y}",
            f"{MONTHS[month]} {y}",
        )
    )


def count(rng: random.Random) -> str:
    """A whole number of one to seven digits."""
    value = rng.randint(2, 10 ** rng.randint(1, 7))
    return f"{value:,}" if value > 999 and rng.random() < 0.5 else str(value)


def decimal(rng: random.Random) -> str:
    """A number with decimals."""
    return f"{rng.uniform(0, 10 ** rng.randint(1, 4)):.{rng.randint(1, 2)}f}"


def measure(*units: str) -> Generator:
    """A generator of quantities in one of `units`."""
    return lambda rng: f"{rng.choice((count, decimal))(rng)} {rng.choice(units)}"


def one_of(values: str) -> Generator:
    """A generator that picks from a list written with semicolons."""
    options = choices(values)
    return lambda rng: rng.choice(options)


NATIONALITY = one_of(
    "French;Italian;Chinese;Japanese;Indian;English;Spanish;Dutch;Polish;Irish;Turkish;Korean;Greek;Brazilian;"
    "Mexican;Danish;Swedish;Russian;Egyptian;Thai;Canadian;German;Finnish;Scottish"
)
COLOUR = one_of("red;blue;green;black;white;yellow;orange;purple;brown;grey;silver;golden;pink;turquoise;cream")


# --- domains -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attr:
    """One kind of fact and the ways to put it."""

    keys: tuple[str, ...]  # spellings of the key; the first one names a triple's relation
    make: Generator  # draws a value
    says: tuple[str, ...] = ()  # predicates after the subject, `{}` stands for the value
    adjunct: tuple[str, ...] = ()  # phrases set off by commas, before or after the subject
    noun: str = ""  # "its <noun> is <value>"
    adjective: bool = False  # "a <value> ship"
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # predicates of yes/no values


@dataclass(frozen=True)
class Domain:
    """A kind of thing to be described."""

    noun: str
    keys: tuple[str, ...]  # spellings of the key that holds the thing's name
    make: Generator
    attrs: tuple[Attr, ...]
    human: bool = False
    kinds: tuple[str, ...] = ()  # spellings of a key that holds the noun; none where the name's key tells it


def attr(keys: str, make: Generator, says: str = "", *, adjunct: str = "", noun: str = "") -> Attr:
    """An `Attr` from lists written with semicolons."""
    return Attr(
        keys=tuple(choices(keys)),
        make=make,
        says=tuple(choices(says)),
        adjunct=tuple(choices(adjunct)),
        noun=noun,
    )


def kind(keys: str, values: str | Generator, says: str = "") -> Attr:
    """A closed class that can stand before the noun."""
    make = one_of(values) if isinstance(values, str) else values
    return Attr(keys=tuple(choices(keys)), make=make, says=tuple(choices(says)), adjective=True)


def flag(keys: str, *, yes: str, no: str) -> Attr:
    """A yes/no fact with its predicates."""
    answers = {"yes": tuple(choices(yes)), "no": tuple(choices(no))}
    return Attr(keys=tuple(choices(keys)), make=one_of("yes;no"), answers=answers)


LOCATED = attr(
    "location;located in;city",
    place,
    "is located in {};lies in {};can be found in {};stands in {};is in {}",
    adjunct="located in {};in {};situated in {}",
    noun="location",
)
COUNTRY = attr(
    "country;nation",
    place,
    "is in the country of {};belongs to {};comes from {};is from {}",
    adjunct="from {}",
    noun="country",
)
OWNER = attr(
    "owner;owned by",
    org,
    "is owned by {};belongs to {};is the property of {}",
    adjunct="owned by {}",
    noun="owner",
)
FOUNDED = attr(
    "founding year;founded;established",
    year,
    "was founded in {};was established in {};dates from {};goes back to {}",
    adjunct="founded in {};established in {}",
    noun="founding year",
)
BORN = attr(
    "birth place;born in",
    place,
    "was born in {};comes from {};grew up in {}",
    adjunct="born in {};a native of {}",
    noun="birthplace",
)
BORN_ON = attr(
    "birth date;date of birth",
    date,
    "was born on {};has been in this world since {}",
    adjunct="born on {}",
    noun="date of birth",
)
WEIGHT = attr(
    "weight;mass",
    measure("kg", "tonnes", "g", "pounds"),
    "weighs {};has a weight of {};tips the scales at {}",
    adjunct="weighing {};at {}",
    noun="weight",
)
HEIGHT = attr(
    "height",
    measure("m", "feet", "cm", "metres"),
    "is {} tall;rises to {};reaches a height of {}",
    adjunct="{} tall;with a height of {}",
    noun="height",
)
PUBLIC = flag(
    "open to the public;public access",
    yes="is open to the public;welcomes visitors;can be visited",
    no="is closed to the public;does not admit visitors;cannot be visited",
)

DOMAINS = (
    Domain(
        "ship",
        ("ship", "vessel", "ship title"),
        phrase,
        (
            kind("ship class;class", "three-masted;steam-driven;wooden;ocean-going;armoured;diesel;sailing"),
            attr(
                "builder;built by",
                org,
                "was built by {};left the yard of {};is the work of {}",
                adjunct="built by {}",
                noun="builder",
            ),
            attr(
                "launched;launch date",
                date,
                "was launched on {};first sailed on {}",
                adjunct="launched on {}",
            ),
            attr(
                "crew size;crew",
                count,
                "has a crew of {};is sailed by {} people",
                adjunct="with a crew of {}",
            ),
            attr("top speed", measure("knots", "mph"), "can make {};reaches {}", noun="top speed"),
            attr(
                "home port",
                place,
                "sails from {};is registered in {}",
                adjunct="based at {}",
                noun="home port",
            ),
            attr("captain;master", person, "is commanded by {};sails under {}", noun="captain"),
            attr(
                "cargo",
                one_of("coal;timber;cotton;grain;wine;steel;mail;tea;copper"),
                "carries {}",
                noun="cargo",
            ),
        ),
    ),
    Domain(
        "museum",
        ("museum", "museum title", "institution"),
        lambda r: f"{r.choice((place, person, phrase))(r)} {r.choice(('Museum', 'Gallery', 'Collection'))}",
        (
            LOCATED,
            FOUNDED,
            PUBLIC,
            kind("subject;theme", "maritime;natural history;modern art;folk;railway;military;science;design"),
            attr(
                "director;curator",
                person,
                "is run by {};is headed by {}",
                adjunct="led by {}",
                noun="director",
            ),
            attr("visitors per year", count, "draws {} visitors a year;receives {} guests every year"),
            attr("best known work;showpiece", phrase, "is home to {};is famous for {}", noun="showpiece"),
            attr("architect", person, "was designed by {}", adjunct="designed by {}", noun="architect"),
        ),
    ),
    Domain(
        "book",
        ("book", "book title", "title"),
        phrase,
        (
            kind("genre", "historical;crime;romance;fantasy;science fiction;illustrated;travel;cookery;comic"),
            attr(
                "author;written by;writer",
                person,
                "was written by {};is by {};came from the pen of {}",
                adjunct="written by {};a work by {}",
                noun="author",
            ),
            attr(
                "publisher;published by",
                org,
                "was published by {};appeared with {}",
                adjunct="published by {}",
                noun="publisher",
            ),
            attr("pages;number of pages", count, "has {} pages;runs to {} pages", adjunct="with its {} pages"),
            attr("publication year;year", year, "came out in {};appeared in {}", adjunct="first printed in {}"),
            attr(
                "isbn;ISBN",
                lambda r: f"{r.randint(0, 9)}-{r.randint(100, 99999)}-{r.randint(1000, 99999)}-{r.randint(0, 9)}",
                "has the ISBN {};is listed as {}",
                noun="ISBN",
            ),
            attr("main character;hero", person, "tells the story of {};follows {}", noun="main character"),
            attr("language", NATIONALITY, "was written in {};is in {}", noun="language"),
        ),
    ),
    Domain(
        "planet",
        ("planet", "body", "object"),
        lambda r: r.choice(
            (
                coin,
                code,
                lambda q: f"{coin(q)} {q.choice('bcdefg')}",
                lambda q: f"{q.randint(10, 99999)} {coin(q)}",
            )
        )(r),
        (
            kind("category", "rocky;gaseous;icy;ringed;dwarf;frozen;volcanic"),
            attr(
                "discoverer;discovered by",
                person,
                "was discovered by {};was found by {}",
                adjunct="discovered by {}",
                noun="discoverer",
            ),
            attr(
                "discovery date;discovered",
                date,
                "was first seen on {};was discovered on {}",
                noun="discovery date",
            ),
            attr(
                "orbital period",
                measure("days", "years", "hours"),
                "orbits its star in {};needs {} for one orbit",
                noun="orbital period",
            ),
            attr("moons;number of moons", count, "has {} moons;is circled by {} moons", adjunct="with {} moons"),
            attr(
                "temperature;mean temperature",
                measure("kelvins", "degrees"),
                "has a temperature of {}",
                noun="mean temperature",
            ),
            attr("diameter", measure("km", "miles"), "is {} across;measures {} across", noun="diameter"),
            attr(
                "star;host star",
                lambda r: r.choice((coin, code))(r),
                "circles {};belongs to the system of {}",
                noun="host star",
            ),
        ),
    ),
    Domain(
        "athlete",
        ("athlete", "player", "full name"),
        person,
        (
            BORN,
            BORN_ON,
            kind("nationality", NATIONALITY),
            attr(
                "sport;discipline",
                one_of("tennis;rowing;fencing;judo;swimming;boxing;golf;archery;cycling;chess;hockey"),
                "competes in {};is known for {}",
                noun="sport",
            ),
            attr(
                "team;club",
                org,
                "plays for {};is under contract with {};joined {}",
                adjunct="a member of {}",
                noun="club",
            ),
            attr(
                "coach;trainer",
                person,
                "is coached by {};trains under {}",
                adjunct="trained by {}",
                noun="coach",
            ),
            attr("titles;medals", count, "has won {} titles;holds {} medals", adjunct="winner of {} medals"),
            attr(
                "personal best",
                measure("seconds", "points", "minutes"),
                "has a personal best of {};once managed {}",
                noun="personal best",
            ),
            attr(
                "shirt number;number",
                count,
                "wears the number {};plays with the number {}",
                noun="shirt number",
            ),
        ),
        human=True,
    ),
    Domain(
        "program",
        ("software", "program", "package"),
        camel,
        (
            kind("licence;license", "free;proprietary;open-source;commercial;shareware"),
            attr(
                "developer;developed by",
                org,
                "was developed by {};is made by {}",
                adjunct="developed by {}",
                noun="developer",
            ),
            attr(
                "programming language;written in",
                one_of("Python;Rust;C++;Java;Go;Haskell;Lisp;Fortran;Ada;Perl;Kotlin"),
                "is written in {};was programmed in {}",
                adjunct="written in {}",
            ),
            attr(
                "latest version;version",
                lambda r: f"{r.randint(0, 30)}.{r.randint(0, 30)}.{r.randint(0, 99)}",
                "has reached version {};is now at {}",
                noun="latest version",
            ),
            attr(
                "platform;operating system",
                lambda r: r.choice(("Linux", "Windows", camel(r), camel(r))),
                "runs on {};needs {}",
                noun="platform",
            ),
            attr(
                "purpose;used for",
                one_of("image editing;accounting;mapping;music notation;weather forecasting;translation"),
                "is used for {};was made for {}",
                noun="purpose",
            ),
            attr(
                "release date;released",
                date,
                "was released on {};has been available since {}",
                adjunct="released on {}",
                noun="release date",
            ),
            attr("users;downloads", count, "has {} users;is used by {} people"),
        ),
    ),
    Domain(
        "recipe",
        ("dish", "recipe", "recipe title"),
        lambda r: f"{r.choice((coin, lambda q: q.choice(ADJECTIVES)))(r)} {r.choice(DISHES)}",
        (
            kind("origin;style", NATIONALITY),
            attr(
                "main ingredient;ingredient",
                one_of("barley;lamb;pumpkin;rice;cod;mushroom;cabbage;lentil;almond;cheese;duck;spinach"),
                "is made with {};is based on {}",
                adjunct="made with {}",
                noun="main ingredient",
            ),
            attr(
                "cooking time;time needed",
                measure("minutes", "hours"),
                "takes {} to cook;is ready in {}",
                noun="cooking time",
            ),
            attr("servings;serves", count, "serves {};is enough for {} people", adjunct="enough for {} guests"),
            attr(
                "inventor;creator",
                person,
                "was invented by {};was first cooked by {}",
                adjunct="created by {}",
                noun="inventor",
            ),
            attr("calories", measure("kcal", "calories"), "contains {};provides {}", noun="energy"),
            attr(
                "served with;side dish",
                one_of("boiled potatoes;white bread;green beans;noodles;pickles;honey;sour cream;apple sauce"),
                "is served with {};goes well with {}",
                adjunct="served with {}",
            ),
            flag("vegetarian", yes="is vegetarian;contains no meat", no="is not vegetarian;contains meat"),
        ),
    ),
    Domain(
        "village",
        ("village", "settlement", "place"),
        place,
        (
            COUNTRY,
            attr(
                "population;inhabitants",
                count,
                "has a population of {};is home to {} people;has {} inhabitants",
                adjunct="with {} inhabitants",
                noun="population",
            ),
            attr("mayor;leader", person, "is led by {};has {} as its mayor", noun="mayor"),
            attr(
                "elevation",
                measure("m", "feet"),
                "lies at {};is {} above sea level",
                adjunct="{} above sea level",
                noun="elevation",
            ),
            attr(
                "river",
                coin,
                "lies on the river {};stands on the {}",
                adjunct="on the banks of the {}",
                noun="river",
            ),
            attr(
                "postal code;postcode",
                code,
                "has the postcode {};can be reached by mail under {}",
                noun="postcode",
            ),
            attr(
                "first mentioned",
                year,
                "was first mentioned in {};enters the records in {}",
                adjunct="first mentioned in {}",
            ),
            kind("setting", "fishing;mining;farming;mountain;island;market;border;coastal"),
            attr("twin town;partner", place, "is twinned with {};has ties with {}", noun="twin town"),
        ),
    ),
    Domain(
        "train",
        ("train", "service", "locomotive"),
        lambda r: r.choice((lambda q: f"{phrase(q)} Express", code, phrase))(r),
        (
            kind("traction;power", "electric;diesel;steam;high-speed;narrow-gauge;overnight"),
            attr(
                "operator;run by",
                org,
                "is operated by {};is run by {}",
                adjunct="operated by {}",
                noun="operator",
            ),
            attr(
                "from;origin station",
                place,
                "starts from {};departs from {}",
                adjunct="starting at {}",
                noun="first stop",
            ),
            attr(
                "to;destination;terminus",
                place,
                "goes to {};ends in {};terminates at {}",
                adjunct="bound for {}",
                noun="destination",
            ),
            attr(
                "departure;departure time",
                lambda r: f"{r.randint(0, 23)}:{r.randint(0, 59):02d}",
                "leaves at {};sets off at {}",
                adjunct="leaving at {}",
                noun="departure time",
            ),
            attr("carriages;cars", count, "has {} carriages;pulls {} cars", adjunct="made up of {} carriages"),
            attr("seats;capacity", count, "seats {} passengers;has room for {} people", noun="capacity"),
            attr("livery;colour", COLOUR, "is painted {};runs in {} livery", noun="livery"),
        ),
    ),
    Domain(
        "species",
        ("species", "animal", "common label"),
        lambda r: f"{coin(r)} {r.choice(ANIMALS)}",
        (
            WEIGHT,
            kind("diet", "plant-eating;meat-eating;insect-eating;fish-eating;fruit-eating"),
            kind("conservation status;status", "common;rare;endangered;vulnerable;extinct;protected"),
            attr(
                "latin term;scientific label",
                lambda r: f"{coin(r)} {coin(r).lower()}",
                "is known to science as {};goes by the Latin {}",
                adjunct="scientifically {}",
            ),
            attr(
                "habitat;lives in",
                one_of("swamps;deserts;rain forests;caves;grassland;coral reefs;tundra;mangroves;rivers"),
                "lives in {};inhabits {}",
                adjunct="at home in {}",
                noun="habitat",
            ),
            attr(
                "lifespan;life span",
                measure("years", "months", "weeks"),
                "lives for {};can live {}",
                noun="lifespan",
            ),
            attr("described by", person, "was first described by {}", adjunct="described by {}"),
            attr(
                "found in;native to",
                place,
                "is native to {};occurs in {}",
                adjunct="native to {}",
                noun="home",
            ),
        ),
    ),
    Domain(
        "film",
        ("film", "movie", "film title"),
        phrase,
        (
            kind("film genre;genre", "silent;horror;comedy;war;musical;animated;documentary;western;action"),
            attr(
                "director;directed by",
                person,
                "was directed by {};is a work of {}",
                adjunct="directed by {}",
                noun="director",
            ),
            attr("starring;star;lead actor", person, "stars {};features {}", adjunct="starring {}", noun="star"),
            attr(
                "running time;runtime",
                measure("minutes", "min"),
                "lasts {};runs for {}",
                adjunct="with a running time of {}",
                noun="running time",
            ),
            attr(
                "budget;cost",
                lambda r: f"{r.choice('$€£')}{count(r)}",
                "cost {} to make;had a budget of {}",
                adjunct="made for {}",
                noun="budget",
            ),
            attr("release year;released", year, "came out in {};was released in {}", adjunct="released in {}"),
            attr(
                "music;composer",
                person,
                "has music by {};was scored by {}",
                adjunct="with music by {}",
                noun="composer",
            ),
            attr(
                "studio;produced by",
                org,
                "was produced by {};was made at {}",
                adjunct="produced by {}",
                noun="studio",
            ),
        ),
    ),
    Domain(
        "company",
        ("company", "firm", "business"),
        org,
        (
            FOUNDED,
            attr(
                "industry;sector",
                one_of(
                    "banking;shipping;insurance;textiles;electronics;farming;mining;printing;energy;toys;pharmaceuticals"
                ),
                "works in {};is active in {};does business in {}",
                noun="sector",
            ),
            attr(
                "founder;founded by",
                person,
                "was founded by {};was started by {}",
                adjunct="founded by {}",
                noun="founder",
            ),
            attr(
                "chief executive;CEO;head",
                person,
                "is led by {};has {} at its head",
                adjunct="led by {}",
                noun="chief executive",
            ),
            attr("employees;staff", count, "employs {} people;has a staff of {}", adjunct="with {} employees"),
            attr(
                "revenue;turnover",
                lambda r: f"{r.choice('$€£')}{decimal(r)} {r.choice(('million', 'billion'))}",
                "earns {} a year;has a turnover of {}",
                noun="revenue",
            ),
            attr(
                "headquarters;head office;based in",
                place,
                "has its headquarters in {};is based in {}",
                adjunct="based in {}",
                noun="head office",
            ),
            attr("product;best seller", camel, "makes {};is known for {}", noun="main product"),
        ),
    ),
    Domain(
        "airport",
        ("airport", "airfield"),
        lambda r: f"{place(r)} {r.choice(('Airport', 'International Airport', 'Airfield'))}",
        (
            LOCATED,
            OWNER,
            attr(
                "runway designation;runway",
                lambda r: f"{r.randint(1, 36):02d}{r.choice('LRC')}/{r.randint(1, 36):02d}{r.choice('LRC')}",
                "has a runway called {};uses the runway {}",
                noun="runway",
            ),
            attr(
                "code;call sign",
                lambda r: "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=4)),
                "goes by the code {};has the code {}",
                noun="code",
            ),
            attr(
                "passengers;passengers per year",
                count,
                "handles {} passengers a year;serves {} travellers a year",
            ),
            attr("serves city;city served", place, "serves the city of {};serves {}", adjunct="serving {}"),
            attr(
                "altitude;elevation above sea level",
                measure("m", "feet"),
                "is {} above sea level",
                adjunct="{} above sea level",
                noun="altitude",
            ),
            attr("opened;opening date", date, "was opened on {};has been open since {}", adjunct="opened on {}"),
        ),
    ),
    Domain(
        "building",
        ("building", "structure", "tower"),
        lambda r: f"{r.choice((coin, phrase, person))(r)} {r.choice(HOUSES)}",
        (
            LOCATED,
            HEIGHT,
            OWNER,
            attr(
                "architect;designed by",
                person,
                "was designed by {};is the work of {}",
                adjunct="designed by {}",
                noun="architect",
            ),
            attr("floors;floor count", count, "has {} floors;counts {} storeys", adjunct="with {} floors"),
            attr(
                "completed;completion date",
                date,
                "was completed on {};was finished on {}",
                adjunct="completed on {}",
                noun="completion date",
            ),
            kind(
                "architectural style;style",
                "Gothic;Baroque;brutalist;modernist;Art Deco;Romanesque;neoclassical",
            ),
            attr(
                "material;made of",
                one_of("granite;brick;concrete;glass;timber;marble;sandstone;steel"),
                "is built of {};is made of {}",
                adjunct="built of {}",
                noun="main material",
            ),
            attr("tenant;current tenant", org, "houses {};is used by {}", noun="tenant"),
        ),
    ),
    Domain(
        "song",
        ("song", "track", "single"),
        phrase,
        (
            kind("music genre;genre", "rock;jazz;folk;soul;disco;punk;country;gospel;blues"),
            attr(
                "performer;sung by;artist",
                lambda r: r.choice((person, phrase))(r),
                "was recorded by {};is sung by {}",
                adjunct="sung by {}",
                noun="performer",
            ),
            attr(
                "album",
                phrase,
                "is on the album {};appeared on {}",
                adjunct="from the album {}",
                noun="album",
            ),
            attr(
                "record label;label",
                org,
                "was issued by {};came out on {}",
                adjunct="issued by {}",
                noun="label",
            ),
            attr(
                "duration;playing time",
                lambda r: f"{r.randint(1, 12)}:{r.randint(0, 59):02d}",
                "lasts {};plays for {}",
                noun="duration",
            ),
            attr(
                "songwriter;composer",
                person,
                "was written by {};was composed by {}",
                adjunct="composed by {}",
                noun="songwriter",
            ),
            attr(
                "chart position;peak",
                lambda r: f"number {r.randint(1, 100)}",
                "reached {} in the charts;climbed to {}",
            ),
            attr(
                "recorded;recording date",
                date,
                "was recorded on {}",
                adjunct="recorded on {}",
                noun="recording date",
            ),
        ),
    ),
    Domain(
        "university",
        ("university", "college", "school"),
        lambda r: r.choice(
            (
                lambda q: f"University of {place(q)}",
                lambda q: f"{person(q)} College",
                lambda q: f"{place(q)} Institute",
            )
        )(r),
        (
            LOCATED,
            FOUNDED,
            attr(
                "students;number of students",
                count,
                "has {} students;teaches {} students",
                adjunct="with {} students",
            ),
            attr(
                "rector;president;dean",
                person,
                "is headed by {};has {} as its rector",
                adjunct="led by {}",
                noun="rector",
            ),
            attr(
                "motto",
                lambda r: f"{coin(r)} {coin(r).lower()} {coin(r).lower()}",
                "has the motto {};lives by the words {}",
                noun="motto",
            ),
            attr(
                "nickname;team nickname",
                lambda r: f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}s",
                "has teams called the {};is nicknamed the {}",
            ),
            attr(
                "affiliation",
                org,
                "is affiliated with {};is a member of {}",
                adjunct="affiliated with {}",
                noun="affiliation",
            ),
            attr(
                "colours;school colours",
                lambda r: f"{COLOUR(r)} and {COLOUR(r)}",
                "shows the colours {};is known by {}",
            ),
        ),
    ),
    Domain(
        "scientist",
        ("scientist", "scholar", "person"),
        person,
        (
            BORN,
            BORN_ON,
            kind("nationality", NATIONALITY),
            attr(
                "field;works on",
                one_of("chemistry;botany;logic;astronomy;optics;genetics;linguistics;geology;medicine;statistics"),
                "works on {};is an expert in {}",
                noun="field",
            ),
            attr(
                "employer;workplace",
                org,
                "works for {};is employed by {}",
                adjunct="employed by {}",
                noun="employer",
            ),
            attr(
                "doctoral advisor;teacher",
                person,
                "studied under {};was a pupil of {}",
                adjunct="taught by {}",
                noun="teacher",
            ),
            attr(
                "alma mater;education",
                lambda r: f"University of {place(r)}",
                "studied at the {};graduated from the {}",
                noun="alma mater",
            ),
            attr("known for;discovery", name, "is known for {};discovered {}", adjunct="famous for {}"),
            attr(
                "award;prize",
                lambda r: f"{coin(r)} {r.choice(('Prize', 'Medal', 'Award'))}",
                "was given the {};won the {}",
                adjunct="holder of the {}",
            ),
        ),
        human=True,
    ),
    Domain(
        "car",
        ("car", "model", "vehicle"),
        lambda r: f"{coin(r)} {r.choice((code, coin, lambda q: q.choice(NOUNS)))(r)}",
        (
            kind("body style;body", "two-door;sports;off-road;convertible;electric;compact;luxury"),
            attr(
                "manufacturer;made by;maker",
                org,
                "is made by {};was produced by {}",
                adjunct="made by {}",
                noun="maker",
            ),
            attr(
                "engine",
                lambda r: f"{decimal(r)}-litre {r.choice(('V6', 'V8', 'four-cylinder', 'diesel'))}",
                "has a {} engine;is driven by a {} motor",
                noun="engine",
            ),
            attr(
                "assembly;assembled in",
                place,
                "is assembled in {};is put together in {}",
                adjunct="assembled in {}",
            ),
            attr(
                "designer;designed by",
                person,
                "was designed by {};was drawn by {}",
                adjunct="designed by {}",
                noun="designer",
            ),
            attr(
                "wheelbase;width",
                measure("mm", "inches"),
                "measures {} between the axles;has a wheelbase of {}",
            ),
            attr("top speed;maximum speed", measure("km/h", "mph"), "can reach {};does {}", noun="top speed"),
            attr("units sold;sales", count, "sold {} times;found {} buyers"),
            attr("paint;colour", COLOUR, "comes in {};is painted {}", noun="colour"),
        ),
    ),
    Domain(
        "battle",
        ("battle", "conflict", "event"),
        lambda r: f"{r.choice(('Battle', 'Siege', 'Treaty'))} of {place(r)}",
        (
            attr(
                "location;city",
                place,
                "was fought at {};took place near {}",
                adjunct="fought at {}",
                noun="place",
            ),
            attr("date;fought on", date, "took place on {};happened on {}", adjunct="dated {}", noun="date"),
            attr("commander;led by", person, "was led by {};was decided by {}", noun="commander"),
            attr("victor;won by", place, "was won by {};ended well for {}", adjunct="won by {}", noun="victor"),
            attr(
                "part of;war",
                lambda r: f"{r.choice((coin, lambda q: q.choice(ADJECTIVES)))(r)} War",
                "was part of the {};belongs to the {}",
                adjunct="part of the {}",
            ),
            attr("casualties;losses", count, "cost {} lives;left {} dead"),
            attr("monument;remembered by", phrase, "is remembered by {};is marked by {}", noun="monument"),
        ),
    ),
    Domain(
        "phone",
        ("device", "phone", "gadget"),
        lambda r: f"{coin(r)} {r.choice((code, camel))(r)}",
        (
            WEIGHT,
            attr("maker;brand", org, "is made by {};comes from {}", adjunct="made by {}", noun="maker"),
            attr(
                "screen;display",
                measure("inches", "cm"),
                "has a screen of {};has a display of {}",
                adjunct="with a display of {}",
                noun="screen size",
            ),
            attr(
                "battery;battery capacity",
                measure("mAh", "hours"),
                "has a battery of {};holds a charge of {}",
                noun="battery",
            ),
            attr(
                "memory;storage",
                measure("GB", "MB", "TB"),
                "offers {} of memory;stores {}",
                adjunct="with {} of memory",
                noun="storage",
            ),
            attr("finish;colour", COLOUR, "comes in {};is sold in {}", noun="colour"),
            attr("system;runs", camel, "runs {};works with {}", adjunct="running {}", noun="system"),
            flag(
                "waterproof",
                yes="is waterproof;survives a fall into water",
                no="is not waterproof;must be kept dry",
            ),
            attr(
                "listed at;retail cost",
                lambda r: f"{r.choice('$€£')}{count(r)}",
                "costs {};is sold for {}",
                noun="cost",
            ),
        ),
    ),
)

# Facts about a value that is itself a person, a place or an organisation: triples form chains.
SECONDARY: dict[Generator, Domain] = {
    person: Domain(
        "person",
        ("person",),
        person,
        (
            BORN,
            BORN_ON,
            kind("nationality", NATIONALITY),
            attr("spouse", person, "is married to {}", noun="spouse"),
            attr(
                "occupation;profession",
                one_of("teacher;painter;lawyer;farmer;pilot;engineer;singer;doctor"),
                "works as a {}",
                noun="profession",
            ),
        ),
        human=True,
    ),
    place: Domain(
        "place",
        ("place",),
        place,
        (
            COUNTRY,
            attr("leader;mayor", person, "is led by {};has {} as its leader", noun="leader"),
            attr(
                "population;population total",
                count,
                "has {} inhabitants;has a population of {}",
                noun="population",
            ),
            attr("language;official language", lambda r: f"{coin(r)}", "speaks {}", noun="language"),
            attr("capital;largest city", place, "has {} as its largest city", noun="largest city"),
        ),
    ),
    org: Domain(
        "organisation",
        ("organisation",),
        org,
        (
            FOUNDED,
            attr("headquarters", place, "has its seat in {};is based in {}", adjunct="based in {}", noun="seat"),
            attr("chairman;key person", person, "is chaired by {};has {} as its chair", noun="chair"),
            attr("parent company;parent", org, "is part of {};belongs to {}", noun="parent company"),
        ),
    ),
}


# --- from facts to text --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """An attribute with its drawn value."""

    attr: Attr
    value: str


@dataclass(frozen=True)
class Document:
    """A context, a text about it, and the values that the text must state (yes/no values excepted)."""

    context: str
    text: str
    values: tuple[str, ...]


def article(word: str) -> str:
    """The word with its indefinite article."""
    return f"{'an' if word[0].lower() in 'aeiou' and not word.startswith(('uni', 'use', 'usu')) else 'a'} {word}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a , b and c`."""
    return parts[0] if len(parts) == 1 else f"{' , '.join(parts[:-1])} and {parts[-1]}"


def draw_facts(rng: random.Random, *, domain: Domain, limit: int) -> list[Fact]:
    """One to `limit` facts of a domain in random or in the domain's order."""
    size = min(rng.randint(1, limit), len(domain.attrs))
    picked = rng.sample(range(len(domain.attrs)), size)
    if rng.random() < 0.5:
        picked.sort()
    return [Fact(domain.attrs[i], domain.attrs[i].make(rng)) for i in picked]


class Writer:
    """Writes the sentences about one subject."""

    def __init__(self, rng: random.Random, *, domain: Domain, subject: str) -> None:
        self.rng = rng
        self.noun = domain.noun
        self.tells_noun = bool(domain.kinds)  # a fact of its own, which the text has to state
        self.subject = subject
        self.which, self.that = ("who", "who") if domain.human else ("which", "that")
        self.pronoun, self.possessive = rng.choice((("he", "his"), ("she", "her"))) if domain.human else ("it", "its")

    def predicate(self, fact: Fact) -> str:
        """A verb phrase that states the fact."""
        if fact.attr.answers:
            return self.rng.choice(fact.attr.answers[fact.value])
        if fact.attr.says:
            return self.rng.choice(fact.attr.says).format(fact.value)
        return f"is {article(f'{fact.value} {self.noun}')}"

    def mention(self, *, first: bool) -> str:
        """The subject of a sentence."""
        full = (self.subject, self.subject, f"the {self.noun} {self.subject}")
        return self.rng.choice(full if first else (*full[1:], self.pronoun, self.pronoun, f"the {self.noun}"))

    def opening(self, facts: list[Fact]) -> str:
        """A first sentence that says what kind of thing the subject is."""
        adjectives = [f for f in facts if f.attr.adjective][:2]
        rest = [f for f in facts if f not in adjectives]
        thing = article(" ".join([*(f.value for f in adjectives), self.noun]))
        if not rest:
            return self.rng.choice((f"{self.subject} is {thing}", f"There is {thing} called {self.subject}"))
        says = listed([self.predicate(f) for f in rest])
        adjunct = self.adjunct(rest[0])
        tail = f" and {listed([self.predicate(f) for f in rest[1:]])}" if rest[1:] else ""
        plans = [
            f"{self.subject} is {thing} {self.that} {says}",
            f"{self.subject} , {thing} , {says}",
            f"{self.subject} is {thing} and {says}",
            f"{thing} called {self.subject} {says}",
            f"There is {thing} named {self.subject} {self.that} {says}",
            f"{thing} {self.that} {says} is {self.subject}",
        ]
        if adjunct:
            plans += [
                f"{self.subject} is {thing} {adjunct}{tail}",
                f"{adjunct} , {self.subject} is {thing}{tail}",
                f"There is {thing} {adjunct} called {self.subject}{f' {self.that}{tail[4:]}' if tail else ''}",
            ]
        return self.rng.choice(plans)

    def adjunct(self, fact: Fact) -> str:
        """An adjunct that states the fact, or nothing where the attribute has none."""
        return self.rng.choice(fact.attr.adjunct).format(fact.value) if fact.attr.adjunct else ""

    def sentence(self, facts: list[Fact], *, first: bool) -> str:
        """A sentence that states one to three facts."""
        subject = self.mention(first=first)
        if len(facts) == 1 and facts[0].attr.noun and self.rng.random() < 0.4:
            return self.nominal(facts[0], first=first)
        says = [self.predicate(f) for f in facts]
        adjunct = self.adjunct(facts[0])
        plans = [f"{subject} {listed(says)}"]
        if len(facts) > 1:
            later = listed(says[1:])
            plans += [
                f"{subject} {says[0]} , and {self.pronoun} {later}",
                f"{subject} {says[0]} ; {self.pronoun} {later}",
            ]
            if subject not in (self.pronoun, f"the {self.noun}"):
                plans.append(f"{subject} , {self.which} {says[0]} , {later}")
            if adjunct:
                plans += [f"{adjunct} , {subject} {later}", f"{subject} , {adjunct} , {later}"]
            if facts[-1].attr.noun:
                own = f"{self.possessive} {facts[-1].attr.noun} is {facts[-1].value}"
                plans.append(f"{subject} {listed(says[:-1])} , and {own}")
        return self.rng.choice(plans)

    def nominal(self, fact: Fact, *, first: bool) -> str:
        """A sentence built on the attribute's noun."""
        noun, value = fact.attr.noun, fact.value
        plans = [
            f"The {noun} of {self.subject} is {value}",
            f"{value} is the {noun} of {self.subject}",
            f"{self.subject} 's {noun} is {value}",
        ]
        if not first:
            plans += [f"{self.possessive} {noun} is {value}", f"{value} is {self.possessive} {noun}"]
        return self.rng.choice(plans)

    def text(self, facts: list[Fact]) -> list[str]:
        """All facts in sentences, each without its full stop."""
        if self.rng.random() < 0.4:
            facts = self.rng.sample(facts, len(facts))
        chunks = []
        while facts:
            size = self.rng.choices((1, 2, 3), (3, 4, 2))[0]
            chunks.append(facts[:size])
            facts = facts[size:]
        opens = self.tells_noun or self.rng.random() < 0.5
        start = self.opening(chunks[0]) if opens else self.sentence(chunks[0], first=True)
        sentences = [start, *(self.sentence(chunk, first=False) for chunk in chunks[1:])]
        return [s[0].upper() + s[1:] for s in sentences]


def punctuate(rng: random.Random, sentences: list[str]) -> str:
    """One text, with E2E's spaced punctuation or the ordinary kind."""
    text = " . ".join(sentences) + " ."
    if rng.random() < 0.5:
        return text
    for mark in (".", ",", ";"):
        text = text.replace(f" {mark} ", f"{mark} ")
    return text.replace(" 's ", "'s ").removesuffix(" .") + "."


# --- made-up domains -----------------------------------------------------------------------------------

THINGS = choices(
    "hotel;hostel;cinema;theatre;library;school;clinic;gym;garden;farm;market;studio;workshop;station;castle;chapel;"
    "campsite;factory;zoo;magazine;festival;course;game;lamp;bicycle;watch;camera;tractor;kettle;sofa;carpet;violin;tent;"
    "printer;drone;clock;guitar;boat;bakery;florist;barber;bookshop;nursery;laundry;tailor;gallery;warehouse;cabin;villa;"
    "cottage;barn;cave;fountain;statue;tunnel;lighthouse;mill;vineyard;orchard;stable;arena;playground;aquarium;spa;"
    "club;choir;orchestra;charity;league;blog;podcast;perfume;cheese;wine;tea;chair;desk;mirror;vase;telescope;radio;"
    "engine;tram;ferry;balloon;glider;sword;helmet;jacket;hat;necklace;doll;puzzle;robot;sensor;battery;oven;heater;"
    "office;garage;pharmacy;youth centre;sports hall;night market;guest house;toy shop;art school;tea room;pool"
)
MODIFIERS = choices(
    "average;main;first;second;current;former;inner;outer;monthly;yearly;daily;local;official;total;usual;top;bottom;"
    "front;rear;night;day;winter;evening;weekend;guest;visitor;user;member;staff;student;safety;noise;comfort;quality;"
    "service;entry;base;final;early;late;public;private;technical;chief;nearest;secondary;minimum;maximum;hidden"
)
FIGURES = choices(
    "size;cost;fee;score;grade;rank;level;power;pressure;depth;width;capacity;rating;value;deposit;discount;allowance;"
    "budget;frequency;voltage;limit;charge;tariff;age;volume;range;quota;share;rent;salary;loss;gain"
)
HOLDERS = choices(
    "sponsor;founder;manager;teacher;partner;rival;supplier;designer;neighbour;brand;model;address;street;district;"
    "contact;guardian;tenant;landlord;agent;host;guide;critic;patron;importer;label;motto;nickname;symbol;successor"
)
MANNERS = choices(
    "colour;shape;smell;taste;sound;theme;style;mood;pattern;material;finish;reputation;atmosphere;service;quality;"
    "condition;standard;comfort;view;lighting;design;character;status;noise level;risk;demand"
)
QUALITIES = choices(
    "low;high;average;excellent;poor;good;bad;fair;modest;outstanding;mixed;very high;very low;above average;ordinary;"
    "awful;decent;superb;simple;elegant;rough;smooth;warm;cool;bright;dark;modern;classic;rustic;relaxed;formal;strict;"
    "unusual;cheap;expensive;affordable;acceptable;fine;plain;lively"
)
SPOTS = choices(
    "harbour;old town;market square;north bank;hillside;station quarter;university quarter;seafront;west end;upper town"
    ";business district;canal side;village green;castle quarter;east side;suburbs;main street;south side;arcade"
)
SPOT_KEYS = choices("quarter;district;spot;zone;side of town;neighbourhood;part of town;setting;surroundings")
BESIDE = choices(
    "beside:beside|next to|right by;close to:close to|near|not far from;next to:next to|beside;"
    "opposite:opposite|across from;behind:behind|at the back of;across from:across from|opposite;"
    "adjacent to:adjacent to|next to;nearest building:near|close to"
)
FRIENDS = choices("pet;beginner;eco;student;bicycle;senior;camera;group;visitor;baby;business;tourist")
STATES = choices(
    "heated;insured;waterproof;licensed;furnished;haunted;automatic;portable;accessible;air conditioned;members only;"
    "family owned;wheelchair accessible;child safe;solar powered;hand made;fully booked;well lit"
)
VERBS = choices(
    "sells:sells|offers|stocks;repairs:repairs|mends|takes care of;teaches:teaches|offers courses in;"
    "collects:collects|gathers;makes:makes|produces|turns out;exports:exports|ships;offers:offers|provides|has;"
    "specialises in:specialises in|is known for|is all about;stocks:stocks|carries|sells;supplies:supplies|provides;"
    "promotes:promotes|supports;hosts:hosts|is home to"
)
GOODS = choices(
    "hats;books;tools;shoes;lamps;maps;toys;carpets;flowers;clocks;stamps;bags;candles;boats;bicycles;pottery;glass;"
    "furniture;leather;paper;silk;music;painting;dance;poetry;photographs;instruments;costumes;seeds;spices;medals"
)
KIND_KEYS = choices("kind;class;sort;form;variety;species of thing;what it is;category;concept;establishment")
TITLE_KEYS = choices("title;headline;called;full title;known as;entry;item;subject;heading")
MAKE_KEYS = choices("make;tradition;provenance;origin;style;culture;influence;manner")
UNITS = choices("kg;euros;dollars;hours;metres;points;people;days;stars;percent;tickets;miles;credits;guests")
SYMBOLS = words("£ $ €")


def figure(rng: random.Random) -> str:
    """A quantity as lists and adverts give it: bounds, ranges, marks out of a whole."""
    low = rng.randint(1, 10 ** rng.randint(1, 3))
    high, symbol, unit = low + rng.randint(1, 50), rng.choice(SYMBOLS), rng.choice(UNITS)
    best = rng.choice((5, 6, 10, 20, 100))
    return rng.choice(
        (
            f"{low} {unit}",
            f"{symbol}{low}",
            f"{symbol}{low}-{high}",
            f"{low}-{high} {unit}",
            f"{rng.choice(('less than', 'more than', 'under', 'over', 'up to', 'about'))} {symbol}{low}",
            f"{rng.choice(('less than', 'more than', 'at least', 'at most'))} {low} {unit}",
            f"{rng.randint(1, best)} out of {best}",
            f"{rng.randint(1, best)} of {best}",
        )
    )


def open_attr(rng: random.Random) -> Attr:
    """An attribute made up on the spot, most of them put in phrases that fit any key."""

    def fixed(value: str) -> Generator:
        return lambda _: value

    def key_of(heads: Sequence[str]) -> str:
        return f"{rng.choice(MODIFIERS)} {rng.choice(heads)}" if rng.random() < 0.6 else rng.choice(heads)

    def a_figure() -> Attr:
        key = key_of(FIGURES)
        says = (f"has {article(key)} of {{}}", f"has {{}} as its {key}")
        adjunct = (f"with {article(key)} of {{}}", f"at {article(key)} of {{}}")
        return Attr((key,), figure, says, adjunct, key)

    def a_holder() -> Attr:
        key = key_of(HOLDERS)
        make = rng.choice((name, person, org, place))
        return Attr((key,), make, (f"has {{}} as its {key}", f"has the {key} {{}}"), (f"with {{}} as its {key}",), key)

    def a_manner() -> Attr:
        key, value = key_of(MANNERS), rng.choice((*QUALITIES, COLOUR(rng), NATIONALITY(rng)))
        an = article(value).removesuffix(value)
        says = (
            f"has {an}{{}} {key}",
            f"comes with {an}{{}} {key}",
            f"offers {an}{{}} {key}",
        )
        return Attr((key,), fixed(value), says, (f"with {an}{{}} {key}",), key)

    def a_spot() -> Attr:
        says = ("is in the {}", "is located in the {}", "can be found in the {}", "lies in the {} area")
        adjunct = ("in the {}", "located in the {}", "situated in the {}", "in the {} area")
        return Attr((rng.choice(SPOT_KEYS),), one_of(";".join(SPOTS)), says, adjunct)

    def a_neighbour() -> Attr:
        key, _, said = rng.choice(BESIDE).partition(":")
        places = [f"{where} {{}}" for where in said.split("|")]
        says = [f"{verb} {where}" for verb in ("is", "is located", "can be found", "stands") for where in places]
        adjunct = [f"{how}{where}" for how in ("", "located ", "situated ") for where in places]
        return Attr((key,), rng.choice((name, phrase)), tuple(says), tuple(adjunct))

    def a_state() -> Attr:
        state = rng.choice(STATES)
        if rng.random() < 0.6:
            key = f"{rng.choice(FRIENDS)} friendly"
            state = rng.choice((key, key, key.replace(" ", "-"), key.replace(" ", " - ")))
        else:
            key = state
        yes, no = (f"is {state}", f"is also {state}"), (f"is not {state}", f"is in no way {state}")
        return Attr((key,), one_of("yes;no"), answers={"yes": yes, "no": no})

    def a_verb() -> Attr:
        key, _, said = rng.choice(VERBS).partition(":")
        goods = rng.choice(GOODS)
        value = rng.choice((goods, f"{COLOUR(rng)} {goods}", f"{NATIONALITY(rng)} {goods}", f"{coin(rng)} {goods}"))
        return Attr((key,), fixed(value), tuple(f"{verb} {{}}" for verb in said.split("|")))

    def a_make() -> Attr:
        key, value = rng.choice(MAKE_KEYS), rng.choice((NATIONALITY(rng), coin(rng), rng.choice(QUALITIES)))
        an = article(value).removesuffix(value)
        says = (f"has {an}{{}} {key}", f"is {{}} in {key}")
        return Attr((key,), fixed(value), says, (f"of {{}} {key}",), key, adjective=True)

    return rng.choice(
        (
            a_figure,
            a_figure,
            a_figure,
            a_holder,
            a_holder,
            a_manner,
            a_manner,
            a_spot,
            a_neighbour,
            a_state,
            a_verb,
            a_make,
        )
    )()


def open_domain(rng: random.Random, *, told: bool) -> Domain:
    """A domain made up on the spot: a noun and eight attributes of different keys.

    Args:
        rng: draws all.
        told: the noun stands in a field of its own; else it is the key of the thing's name.
    """
    noun = rng.choice(THINGS)
    attrs: dict[str, Attr] = {}
    while len(attrs) < 8:
        drawn = open_attr(rng)
        attrs[drawn.keys[0]] = drawn
    keys, kinds = ((rng.choice(TITLE_KEYS),), (rng.choice(KIND_KEYS),)) if told else ((noun,), ())
    return Domain(noun, keys, rng.choice((name, phrase, camel)), tuple(attrs.values()), kinds=kinds)


# --- documents -----------------------------------------------------------------------------------------


def any_domain(rng: random.Random, *, told: float) -> Domain:
    """One written by hand, or one made up, with its noun in a field of its own in a share `told` of the cases."""
    return rng.choice(DOMAINS) if rng.random() < 0.5 else open_domain(rng, told=rng.random() < told)


def record(rng: random.Random) -> Document:
    """A document in the manner of E2E: `key : value | key : value`."""
    domain = any_domain(rng, told=0.6)
    subject, facts = domain.make(rng), draw_facts(rng, domain=domain, limit=8)
    kinds = [(rng.choice(domain.kinds), domain.noun)] if domain.kinds else []
    fields = [(rng.choice(domain.keys), subject), *kinds, *((rng.choice(f.attr.keys), f.value) for f in facts)]
    if rng.random() < 0.2:
        fields.append(fields.pop(0))
    spell = relation_style(rng) if rng.random() < 0.3 else str
    text = punctuate(rng, Writer(rng, domain=domain, subject=subject).text(facts))
    context = " | ".join(f"{spell(key)} : {value}" for key, value in fields)
    return Document(context, text, (subject, *(v for _, v in kinds), *(f.value for f in facts if not f.attr.answers)))


def relation_style(rng: random.Random) -> Callable[[str], str]:
    """How the relations of one document are spelled: `builtBy`, `built by`, `built_by`."""

    def camel_case(key: str) -> str:
        head, *tail = key.split()
        return head + "".join(word.capitalize() for word in tail)

    return rng.choice((camel_case, lambda key: key, lambda key: key.lower().replace(" ", "_")))


def triples(rng: random.Random) -> Document:
    """A document in the manner of WebNLG and DART: `subject : relation : object | ...`."""
    domain = any_domain(rng, told=1.0)
    subject, facts = domain.make(rng), draw_facts(rng, domain=domain, limit=5)
    spell = relation_style(rng)
    joiner = rng.choice(("_", "_", " "))
    kinds = [(subject, rng.choice(domain.kinds), domain.noun)] if domain.kinds else []
    rows = [*kinds, *((subject, rng.choice(f.attr.keys), f.value) for f in facts)]
    sentences = Writer(rng, domain=domain, subject=subject).text(facts)
    values = [subject, *(noun for *_, noun in kinds), *(f.value for f in facts if not f.attr.answers)]
    links = [f for f in facts if f.attr.make in SECONDARY]
    if links and rng.random() < 0.5:
        link = rng.choice(links)
        other = SECONDARY[link.attr.make]
        more = draw_facts(rng, domain=other, limit=2)
        rows += [(link.value, rng.choice(f.attr.keys), f.value) for f in more]
        sentences += Writer(rng, domain=other, subject=link.value).text(more)
        values += [f.value for f in more if not f.attr.answers]
    context = " | ".join(
        f"{a.replace(' ', joiner)} : {spell(relation)} : {b.replace(' ', joiner)}" for a, relation, b in rows
    )
    return Document(context, punctuate(rng, sentences), tuple(values))


def documents(rng: random.Random) -> Iterator[Document]:
    """Documents without end: two thirds records, one third triples."""
    while True:
        yield (record if rng.random() < 2 / 3 else triples)(rng)


def main() -> None:
    """Print some documents, one `context||text` a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10, help="documents to print")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = documents(random.Random(args.seed))
    for _ in range(args.count):
        document = next(source)
        print(f"{document.context}||{document.text}")


if __name__ == "__main__":
    main()

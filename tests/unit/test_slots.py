"""Slot verdicts: planted errors are found, each by its kind, and true texts pass."""

import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from lodarepro import compose
from lodarepro.analysis import slots
from lodarepro.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "lodarepro" / "data" / "mini" / "test.txt"
MINI_FACTS = 2594  # of all 513 texts; each is stated once

CONTEXT = (
    "name : The Copper Kettle | Type : pub | food : Italian | price : moderate | customer rating : low "
    "| area : riverside | family friendly : yes | near : Café Ondine"
)
OTHER_NAMES = {"name": ["The Copper Kettle", "Marlow Yard"], "near": ["Café Ondine", "Hotel Sablier", "Burger Vale"]}
PARTS = {
    "name": "The Copper Kettle is",
    "Type": "a pub",
    "food": "with Italian food",
    "price": "at moderate prices",
    "customer rating": "with a low customer rating",
    "area": "by the riverside",
    "family friendly": ", family friendly",
    "near": "near Café Ondine",
}
OTHERS = {
    "name": "Marlow Yard is",
    "Type": "a coffee shop",
    "food": "with sushi",
    "price": "in the more than £ 30 price range",
    "customer rating": "rated 5 out of 5",
    "area": "in the city center",
    "family friendly": ", not family friendly",
    "near": "near Hotel Sablier",
}


def rules_of(dataset: str) -> slots.Rules:
    found = slots.read(dataset)
    assert found is not None
    return found


E2E = rules_of("e2e")


def judge(context: str, text: str) -> slots.Verdicts:
    return slots.compare(context, text, E2E, OTHER_NAMES)


def verdicts(context: str, text: str) -> dict[str, tuple[str, ...]]:
    """The errors of a text, without the kinds of which there are none."""
    found = judge(context, text)
    kinds = {"missing": found.missing, "added": found.added, "wrong": found.wrong}
    return {kind: names for kind, names in kinds.items() if names}


def without(slot: str) -> str:
    return " | ".join(part for part in CONTEXT.split(" | ") if not part.startswith(f"{slot} : "))


# each slot, each kind ---------------------------------------------------------------------------


def test_true_text():
    text = " ".join(PARTS.values())
    assert verdicts(CONTEXT, text) == verdicts(CONTEXT, text.upper()) == {}
    assert set(judge(CONTEXT, text).facts) == set(PARTS)


@pytest.mark.parametrize("slot", PARTS)
def test_left_out(slot: str):
    text = " ".join(part for key, part in PARTS.items() if key != slot)
    assert verdicts(CONTEXT, text) == {"missing": (slot,)}


@pytest.mark.parametrize("slot", PARTS)
def test_another_value(slot: str):
    text = " ".join((PARTS | {slot: OTHERS[slot]}).values())
    assert verdicts(CONTEXT, text) == {"wrong": (slot,)}


@pytest.mark.parametrize("slot", PARTS)
def test_not_in_the_context(slot: str):
    assert verdicts(without(slot), " ".join(PARTS.values())) == {"added": (slot,)}


@pytest.mark.parametrize("slot", PARTS)
def test_right_and_contradicted(slot: str):
    text = " ".join(PARTS.values()) + f" . It is {OTHERS[slot]}"
    assert verdicts(CONTEXT, text) == {"added": (slot,)}


def test_each_slot_once():
    found = judge("name : Marlow Yard", "Marlow Yard has sushi , pasta and curry . It is a pub , a pub and a pub .")
    assert found.added == ("Type", "food")
    assert found.errors == 2


# closed values ----------------------------------------------------------------------------------

YES = (
    "is family - friendly",
    "is kids friendly",
    "welcomes children",
    ". Children are welcome",
    "is child-friendly",
    "is not only cheap but family friendly",
    "is suitable for kids as well as adults",
    "is not bad , and it is family friendly",
    "is a place to bring the whole family",
)
NO = (
    "is not family - friendly",
    "is not a family friendly place",
    "is n't kid friendly",
    "isn't kid friendly",
    "isn’t suitable for families with children",
    "isnt child friendly",
    "is adults only",
    "allows no children",
    "is a non family-friendly place",
    "is non - family - friendly",
    ". Children are not welcome",
    ". Kids are not allowed",
    "does not welcome families",
    "is unsuitable for children",
    "is a good choice if you leave the kids at home",
    "is never a family place",
    "lacks a child friendly atmosphere",
    "is not friendly to kids",
    "is n't a friendly place for children",
    "is a place where children are prohibited",
)


@pytest.mark.parametrize("text", YES)
def test_family_friendly(text: str):
    assert "family friendly" not in str(verdicts("name : Marlow Yard | family friendly : yes", f"Marlow Yard {text} ."))
    found = verdicts("name : Marlow Yard | family friendly : no", f"Marlow Yard {text} .")
    assert found["wrong"] == ("family friendly",)


@pytest.mark.parametrize("text", NO)
def test_not_family_friendly(text: str):
    assert verdicts("name : Marlow Yard | family friendly : no", f"Marlow Yard {text} .") == {}
    found = verdicts("name : Marlow Yard | family friendly : yes", f"Marlow Yard {text} .")
    assert found == {"wrong": ("family friendly",)}


RIGHT = [
    ("price", "cheap", "is a low priced place"),
    ("price", "cheap", "is inexpensive"),
    ("price", "cheap", "costs less than £ 20"),
    ("price", "cheap", "is not expensive"),
    ("price", "less than £ 20", "is cheap"),
    ("price", "less than £ 20", "costs under 20 pounds"),
    ("price", "less than £ 20", "costs less than £20"),
    ("price", "moderate", "has a price range of £20-25"),
    ("price", "moderate", "has a price range of £ 20 - £ 25"),
    ("price", "moderate", "is moderately priced"),
    ("price", "moderate", "has prices that are affordable"),
    ("price", "£ 20 - 25", "has a mid - price range"),
    ("price", "£ 20 - 25", "costs between 20 and 25 pounds"),
    ("price", "£ 20 - 25", "has prices in the average range"),
    ("price", "high", "is pricey"),
    ("price", "high", "costs more than £30"),
    ("price", "more than £ 30", "has high prices"),
    ("price", "more than £ 30", "costs over thirty pounds"),
    ("customer rating", "low", "is rated 1 out of 5"),
    ("customer rating", "low", "is poorly rated"),
    ("customer rating", "1 out of 5", "has a low customer rating"),
    ("customer rating", "1 out of 5", "does not have a good rating"),
    ("customer rating", "1 out of 5", "has an average customer rating of 1 out of 5 stars"),
    ("customer rating", "average", "has three stars"),
    ("customer rating", "3 out of 5", "has a rating that is n't high , and customers call its rating average"),
    ("customer rating", "3 out of 5", "gets a customer rating of three out of five"),
    ("customer rating", "high", "is a 5 - star place"),
    ("customer rating", "high", "has excellent reviews"),
    ("customer rating", "5 out of 5", "is highly rated"),
    ("customer rating", "5 out of 5", "is rated 5/5"),
    ("area", "city centre", "is in the city center"),
    ("area", "city centre", "is in the centre of the city"),
    ("area", "city centre", "is located in the heart of town"),
    ("area", "riverside", "is on the river"),
    ("area", "riverside", "is in the riverside area of the city"),
    ("area", "riverside", "is by the river , north of the city centre"),
    ("Type", "coffee shop", "is a coffee - shop"),
    ("Type", "coffee shop", "is a café"),
    ("Type", "pub", "is a tavern"),
    ("Type", "pub", "is a pub and restaurant"),
    ("Type", "restaurant", "is an eatery"),
    ("food", "English", "serves British food"),
    ("food", "Fast food", "serves fast-food"),
    ("food", "Japanese", "serves sushi"),
    ("food", "Indian", "serves curries"),
    ("food", "French", "serves fruit , wine and cheese"),
]
WRONG = [
    ("price", "cheap", "costs £20-25"),
    ("price", "cheap", "is not cheap"),
    ("price", "less than £ 20", "is moderately priced"),
    ("price", "less than £ 20", "costs less than £ 30"),
    ("price", "moderate", "is cheap"),
    ("price", "£ 20 - 25", "costs £ 20 - 30"),
    ("price", "high", "costs more than 20 pounds"),
    ("price", "more than £ 30", "costs less than £ 30"),
    ("customer rating", "low", "is highly rated"),
    ("customer rating", "1 out of 5", "has an average customer rating"),
    ("customer rating", "3 out of 5", "is rated 4 out of 5"),
    ("customer rating", "5 out of 5", "has a rating of 3"),
    ("area", "city centre", "is in the riverside area of the city"),
    ("Type", "pub", "is a restaurant"),
    ("Type", "coffee shop", "is a restaurant"),
    ("Type", "restaurant", "is a pub"),
    ("food", "Chinese", "serves Japanese food"),
]


@pytest.mark.parametrize(("slot", "value", "text"), RIGHT)
def test_right_value(slot: str, value: str, text: str):
    assert verdicts(f"name : Marlow Yard | {slot} : {value}", f"Marlow Yard {text} .") == {}


@pytest.mark.parametrize(("slot", "value", "text"), WRONG)
def test_wrong_value(slot: str, value: str, text: str):
    assert verdicts(f"name : Marlow Yard | {slot} : {value}", f"Marlow Yard {text} .") == {"wrong": (slot,)}


def test_negation_ends_with_its_mention():
    context = "name : Marlow Yard | price : high | customer rating : high | family friendly : no"
    assert verdicts(context, "Marlow Yard is a non family - friendly highly rated , high priced place .") == {}
    assert verdicts(context, "Marlow Yard is not kid friendly , has high prices and a high rating .") == {}


def test_restaurant_is_no_addition_where_no_type_is_given():
    assert verdicts("name : Marlow Yard", "Marlow Yard is a restaurant .") == {}
    assert verdicts("name : Marlow Yard", "Marlow Yard is a pub .") == {"added": ("Type",)}


def test_what_says_nothing():
    found = verdicts("name : Marlow Yard | area : riverside", "Marlow Yard is north of the city centre .")
    assert found == {"missing": ("area",)}


@pytest.mark.parametrize(
    "text",
    [
        "Marlow Yard is cheap with an average customer rating .",
        "Marlow Yard is low priced , average rated .",
        "Marlow Yard is cheap and has a mid - range rating .",
        "Marlow Yard has a low price range and an average rating .",
        "The prices of Marlow Yard are low and the customer rating is average .",
    ],
)
def test_prices_and_ratings_are_told_apart(text: str):
    assert verdicts("name : Marlow Yard | price : cheap | customer rating : average", text) == {}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("£ 20 - 25", "£20 - 25"),
        ("£20-£25.", "£20 - £25 ."),
        ("Kid - friendly,  non-Family - friendly", "kid friendly , non family friendly"),
        ("Isn’t , is n't , ISN'T , want , don't", "is not , is not , is not , want , do not"),
        ("Café 'Ondine' & the Kettle's", "cafe ondine and the kettle"),
        ("5-star, 18.6 km.", "5 star , 18.6 km ."),
    ],
)
def test_plain_form(text: str, plain: str):
    assert slots.plain(text) == plain


# names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "The Rice Boat",
        "Tarn Fish and Chips",
        "Nadir Indian Cuisine",
        "Old Coffee Shop",
        "Sushi River Inn",
        "Family Pub",
    ],
)
def test_words_of_names_say_nothing(name: str):
    assert verdicts(f"name : {name} | area : riverside", f"{name} is by the river .") == {}
    assert verdicts(f"name : Marlow Yard | near : {name}", f"Marlow Yard is near {name.upper()} .") == {}
    found = verdicts(f"name : {name} | food : Indian | Type : coffee shop", f"{name} is open .")
    assert found == {"missing": ("Type", "food")}


@pytest.mark.parametrize(
    "name",
    [
        "the copper kettle",
        "Copper Kettle",
        "The Copper Kettle's bar",
        "a place named Copper Kettle",
        "Coper Kettle",
        "the Copper Ketle",
    ],
)
def test_forms_of_a_name(name: str):
    assert verdicts("name : The Copper Kettle", f"You will like {name} .") == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Café Ondine", "Cafe Ondine"),
        ("Café Ondine", "the Ondine"),
        ("Hare & Hounds", "the Hare and Hounds"),
        ("Fox and Crown", "Fox & Crown"),
        ("O'Malley's Grill", "OMalleys Grill"),
        ("Linden Plaza Hotel", "the Linden Plaza"),
        ("Linden Plaza Hotel", "Lindon Plaza Hotel"),
    ],
)
def test_forms_of_near(value: str, text: str):
    assert verdicts(f"name : Marlow Yard | near : {value}", f"Marlow Yard is near {text} .") == {}


def test_longest_name_counts():
    names = {"name": ["Marlow", "Marlow Yard"], "near": ["Marlow Yard Hotel"]}
    found = slots.compare("name : Marlow", "Marlow Yard is open .", E2E, names)
    assert found.wrong == ("name",)
    found = slots.compare("name : Marlow", "Marlow is beside the Marlow Yard Hotel .", E2E, names)
    assert (found.wrong, found.missing, found.added) == ((), (), ("near",))


def test_cue_tells_whose_a_name_is():
    names = {"name": ["The Copper Kettle", "Marlow Yard"], "near": ["Café Ondine"]}
    context = "name : The Copper Kettle | near : Café Ondine"
    found = slots.compare(context, "The Copper Kettle is close to the Marlow Yard .", E2E, names)
    assert (found.wrong, found.added) == (("near",), ())
    found = slots.compare(context, "Marlow Yard is close to Café Ondine .", E2E, names)
    assert (found.wrong, found.added) == (("name",), ())


def test_vocabulary():
    contexts = ["name : The Mill | near :  Café   Ondine | food : Thai", "NAME : Marlow Yard | cuisine : none"]
    assert slots.vocabulary(contexts, E2E) == {"name": {"The Mill", "Marlow Yard"}, "near": {"Café Ondine"}}


# contexts and rates -----------------------------------------------------------------------------


def test_facts():
    assert slots.facts("  name :The   Mill|price:£ 20 - 25 |  open : 9 : 30 | empty : | odd") == {
        "name": "The Mill",
        "price": "£ 20 - 25",
        "open": "9 : 30",
    }


def test_unknown_slots_are_told():
    found = judge("name : Marlow Yard | parking : free | TYPE : pub", "Marlow Yard is a pub .")
    assert found == slots.Verdicts(("name", "Type"), (), (), (), ("parking",))


def test_slot_error_rate():
    of = [judge(CONTEXT, " ".join(PARTS.values())), judge("name : Marlow Yard | food : Thai", "A cheap pub .")]
    assert slots.slot_error_rate(of) == 4 / 10  # name and food missing, type and price added
    with pytest.raises(ValueError, match="the rules know no slot"):
        slots.slot_error_rate([judge("parking : free", "")])


# files ------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compose, "config_folder", lambda: tmp_path)
    (tmp_path / "slots").mkdir()
    return (tmp_path / "slots" / "inns.yaml").write_text


def test_no_rules():
    assert slots.read("no-such-set") is None


def test_own_rules(write):
    write(
        "parts: {big: (big|large)}\n"
        "slots:\n"
        "  size: {kind: closed, values: {big: ['{big}'], small: ['sm.l{2}']}}\n"
        "  rooms: {kind: open, shape: '(\\d+) rooms?'}\n"
    )
    rules = rules_of("inns")
    found = slots.compare("size : big | rooms : 12 rooms", "a sml large inn of 11 rooms", rules, {})
    assert (found.missing, found.added, found.wrong) == ((), (), ("rooms",))
    found = slots.compare("size : small", "a small inn of 1 room", rules, {})
    assert (found.missing, found.added, found.wrong) == ((), ("rooms",), ())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ": holds no keys; give slots, and each slot's kind"),
        ("slots: [", ": is no YAML (while parsing"),
        ("slots: {a: {kind: half}}", ": slots.a.kind: input should be 'closed' or 'open'"),
        ("slots: {a: {kind: open, cue: [x]}}", ": slots.a.cue: unexpected keyword argument"),
        ("slots: {a: {kind: closed}}", ": slots.a: a closed slot needs values"),
        ("slots: {a: {kind: open, values: {x: [x]}}}", ": slots.a.values: an open slot has none; make it closed"),
        ("slots: {a: {kind: closed, values: {x: ['(x']}}}", ": slots.a.values.x: '(x': missing ), unterminated"),
        ("slots: {a: {kind: closed, values: {x: ['{yy}']}}}", ": slots.a.values.x: '{yy}': no part 'yy' (valid: none)"),
        ("slots: {a: {kind: open, shape: 'x+'}}", ": slots.a.shape: has no group; put what tells values apart"),
        (
            "slots: {a: {kind: closed, values: {grey: [x]}, generic: [gray]}}",
            ": slots.a.generic: no value 'gray'; did you mean 'grey'? (valid: grey)",
        ),
        (
            "slots: {a: {kind: closed, values: {x: [x], y: [y]}, same: [[x, z]]}}",
            ": slots.a.same: no value 'z' (valid: x, y)",
        ),
    ],
)
def test_faulty_files(write, tmp_path: Path, text: str, fault: str):
    write(text)
    with pytest.raises(BadInput) as caught:
        slots.read("inns")
    (line,) = caught.value.faults
    assert "\n" not in line
    assert line.startswith(f"slots {tmp_path / 'slots' / 'inns.yaml'}{fault}")


# mini -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> list[tuple[str, str]]:
    lines = MINI.read_text(encoding="utf-8").splitlines()
    return [(context, text) for context, _, text in (line.partition("||") for line in lines)]


def stated(make_mini: ModuleType, context: str, text: str) -> dict[str, str]:
    """Each fact's form in a text, the longest of those that are there."""
    low = f" {text.lower()} "
    forms = {
        key: [form for form in make_mini.realisations(key, value) if f" {form.lower()} " in low]
        for key, value in slots.facts(context).items()
    }
    return {key: max(found, key=len) for key, found in forms.items() if found}


def test_mini_references_are_true(mini: list[tuple[str, str]]):
    rules = rules_of("mini")
    names = slots.vocabulary([context for context, _ in mini], rules)
    assert len(mini) == 513
    for context, text in mini:
        found = slots.compare(context, text, rules, names)
        assert (found.errors, found.unknown) == (0, ()), (context, text, found)


def test_mini_left_out_sentences(mini: list[tuple[str, str]], make_mini: ModuleType):
    rules = rules_of("mini")
    names = slots.vocabulary([context for context, _ in mini], rules)
    dropped = 0
    for context, text in mini:
        sentences = text.removesuffix(" .").split(" . ")
        for i in range(len(sentences)):
            rest = " . ".join(sentences[:i] + sentences[i + 1 :]) + " ."
            gone = set(slots.facts(context)) - set(stated(make_mini, context, rest))
            found = slots.compare(context, rest, rules, names)
            assert set(found.missing) == gone, (context, rest)
            assert not found.wrong and not found.added, (context, rest)
            dropped += len(gone)
    assert dropped == MINI_FACTS


def test_mini_swapped_values(mini: list[tuple[str, str]], make_mini: ModuleType):
    rules = rules_of("mini")
    names = slots.vocabulary([context for context, _ in mini], rules)
    values: dict[str, set[str]] = {}
    for context, _ in mini:
        for key, value in slots.facts(context).items():
            values.setdefault(key, set()).add(value)
    rng = random.Random(7)
    swapped, seen = Counter[str](), Counter[str]()
    for context, text in mini:
        for key, form in stated(make_mini, context, text).items():
            other = rng.choice(sorted(values[key] - {slots.facts(context)[key]}))
            start = text.lower().index(form.lower())
            new = text[:start] + rng.choice(make_mini.realisations(key, other)) + text[start + len(form) :]
            found = slots.compare(context, new, rules, names)
            swapped[key] += 1
            seen[key] += (found.wrong, found.missing, found.added) == ((key,), (), ())
    assert sum(swapped.values()) == MINI_FACTS
    assert seen == swapped


# E2E --------------------------------------------------------------------------------------------

KINDS = ("missing", "added", "wrong")
# of the slot: missing and wrong by the contexts that have it, added by texts
RATES = (
    ("Type", 0.022, 0.011, 0.002),
    ("food", 0.135, 0.004, 0.001),
    ("price", 0.080, 0.036, 0.005),
    ("customer rating", 0.175, 0.009, 0.000),
    ("area", 0.103, 0.023, 0.002),
    ("family friendly", 0.112, 0.018, 0.000),
)


@pytest.mark.needs_mount
def test_e2e_references(shared: Path):
    """Written by people, and noisy: the rates are those that were measured when the rules were written.

    Of 100 errors drawn at random, more than 90 were the references' own.
    """
    lines = (shared / "data" / "e2e" / "test.txt").read_text(encoding="utf-8").splitlines()
    pairs = [(context, text) for context, _, text in (line.partition("||") for line in lines)]
    names = slots.vocabulary([context for context, _ in pairs], E2E)
    found = [slots.compare(context, text, E2E, names) for context, text in pairs]
    assert len(found) == 4693
    assert not any(each.unknown for each in found)
    assert 0.080 < slots.slot_error_rate(found) < 0.086
    counts = Counter((kind, slot) for each in found for kind in KINDS for slot in getattr(each, kind))
    facts = Counter(slot for each in found for slot in each.facts)
    assert counts["missing", "name"] + counts["wrong", "name"] == 0  # the data were collected that way
    assert counts["missing", "near"] + counts["wrong", "near"] < 0.005 * facts["near"]
    # Writers leave food, area and the like out of one text in nine, and contradict it in few.
    for slot, missing, wrong, added in RATES:
        assert abs(counts["missing", slot] / facts[slot] - missing) < 0.01, slot
        assert abs(counts["wrong", slot] / facts[slot] - wrong) < 0.005, slot
        assert abs(counts["added", slot] / len(found) - added) < 0.003, slot

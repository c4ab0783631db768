"""Which facts of a context a text leaves out, adds or gets wrong, found by rules: `configs/slots/<dataset>.yaml`.

BLEU hardly notices a `not` too few. Rules that look for each fact's value do, as the slot error rate of Wen et al.
2015 (arXiv 1508.01745, section 4.1) and the scripts of Dušek et al. 2019 (arXiv 1911.03905) showed; these rules and
their patterns are our own.

A text is first brought to a plain form (`plain`): lower case, no accents, one blank between tokens, so that
`£ 20 - 25` and `£20-25`, `kid - friendly` and `kid-friendly` read alike. Names are looked for next and masked by `@`:
`The Rice Boat` says nothing of food. Then each closed slot's patterns are looked for in what is left.

What is found of a slot, its *mentions*, is judged so:

- missing: the context has the slot, the text has no mention of it;
- wrong: the context has it, the text has mentions of it and none is of the right value;
- added: the context does not have it and the text has a mention of it, or the right value is mentioned and a
  contradicting one too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from lodarepro import compose, yaml_files
from lodarepro.errors import BadInput, nearest

FOLDER = "slots"
MASK = "@"  # stands for a name, one for each of its tokens


@dataclass(frozen=True, eq=False)
class Slot:
    """A slot and how its values are found in a text.

    Attributes:
        name: its key as in the contexts.
        kind: `closed`: its values have patterns; `open`: its values are found as text, or have a shape.
        values: of a closed slot: each value in plain form with its patterns. They are matched one by one, so that of
            two that begin alike the longer is found.
        ignored: patterns of what says nothing, though a part of it would.
        same: value to the values that count as right for it, itself included.
        opposite: value to what a negated mention of it says; a value that is not here can't be negated.
        generic: values that a text may mention beside another one, or where the context has none, without adding.
        shape: pattern of any value of the slot, whose groups tell values apart; None: it has none.
        cues: pattern of what directly precedes a name of this slot rather than of another; None: nothing does.
        optional: words that a name may be cited without, at its beginning or end.
        similarity: of a misspelt name and the context's, 0 to 1, from which on it counts as that; None: exact.
    """

    name: str
    kind: Literal["closed", "open"]
    values: tuple[tuple[str, tuple[re.Pattern[str], ...]], ...] = ()
    ignored: tuple[re.Pattern[str], ...] = ()
    same: Mapping[str, frozenset[str]] = field(default_factory=dict)
    opposite: Mapping[str, frozenset[str]] = field(default_factory=dict)
    generic: frozenset[str] = frozenset()
    shape: re.Pattern[str] | None = None
    cues: re.Pattern[str] | None = None
    optional: frozenset[str] = frozenset()
    similarity: float | None = None

    @property
    def named(self) -> bool:
        """Whether its values are names, found by the vocabulary and masked."""
        return self.kind == "open" and self.shape is None


@dataclass(frozen=True, eq=False)
class Rules:
    """The rules of a dataset.

    Attributes:
        dataset: its name.
        slots: in the file's order.
        negator: pattern of a token that negates what follows.
        boundary: pattern of a token beyond which a negator has no effect.
        reach: tokens before a mention in which a negator counts.
    """

    dataset: str
    slots: tuple[Slot, ...]
    negator: re.Pattern[str]
    boundary: re.Pattern[str]
    reach: int


@dataclass(frozen=True)
class Verdicts:
    """What became of a context's facts in a text; each slot stands at most once in each tuple.

    Attributes:
        facts: slots of the context that the rules know.
        missing: of those, the ones that the text has no value of.
        added: slots with a value that the context doesn't give, though the right one, if there is one, is there.
        wrong: slots of the context that the text has only other values of.
        unknown: keys of the context that the rules don't know; they are not judged.
    """

    facts: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    wrong: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def errors(self) -> int:
        """All that is missing, added or wrong."""
        return len(self.missing) + len(self.added) + len(self.wrong)


def slot_error_rate(verdicts: Iterable[Verdicts]) -> float:
    """Errors by facts over all texts, as Wen et al. 2015 pool them; they had no `wrong`, which is here an error too.

    Raises:
        ValueError: there is no fact.
    """
    errors = known = 0
    for each in verdicts:
        errors += each.errors
        known += len(each.facts)
    if not known:
        raise ValueError("no slot error rate: the rules know no slot of these contexts")
    return errors / known


# contexts and texts -----------------------------------------------------------------------------

_TOKEN = re.compile(r"£?\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]")
_HYPHEN = re.compile(r"(?<=[^\W\d_])[ -]*-[ -]*(?=\w)|(?<=\d)[ -]*-[ -]*(?=[^\W\d_])")


def facts(context: str) -> dict[str, str]:
    """The facts of `key : value | key : value`, in its order; what has no colon or no value is left out."""
    pairs = (part.partition(":") for part in context.split("|"))
    found = ((" ".join(key.split()), " ".join(value.split())) for key, _, value in pairs)
    return {key: value for key, value in found if key and value}


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """A text as the patterns see it: lower-case tokens between single blanks.

    Accents and possessive `'s` go, `n't` becomes `not`, `&` becomes `and`, hyphens stay between numbers alone, and
    the pound sign stays with its number.
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    text = re.sub("[‘’´`]", "'", text)
    text = re.sub("[‐‑‒–—−]", "-", text)
    # `isn't`, `is n't` and `isnt`, but not the end of `want`.
    text = re.sub(r" ?n ?' ?t\b", " not", text)
    text = re.sub(r"\b(is|are|does|do|was|were|would|did)nt\b", r"\1 not", text)
    text = re.sub(r" ?' ?s\b|'", "", text).replace("&", " and ")
    text = re.sub(r"£\s+(?=\d)", "£", text)
    return " ".join(_TOKEN.findall(_HYPHEN.sub(" ", text)))


def vocabulary(contexts: Iterable[str], rules: Rules) -> dict[str, set[str]]:
    """All values of each slot with names, over some contexts."""
    found: dict[str, set[str]] = {slot.name: set() for slot in rules.slots if slot.named}
    for context in contexts:
        for slot, value in _known(context, rules)[0]:
            if slot.named:
                found[slot.name].add(value)
    return found


@lru_cache(maxsize=4096)
def _known(context: str, rules: Rules) -> tuple[tuple[tuple[Slot, str], ...], tuple[str, ...]]:
    """A context's facts with their slots, and its keys that have none; keys are compared without case."""
    slots = {slot.name.lower(): slot for slot in rules.slots}
    given = facts(context)
    known = tuple((slots[key.lower()], value) for key, value in given.items() if key.lower() in slots)
    return known, tuple(key for key in given if key.lower() not in slots)


# verdicts ---------------------------------------------------------------------------------------


def compare(context: str, text: str, rules: Rules, vocabulary: Mapping[str, Collection[str]]) -> Verdicts:
    """Judge a text by its context.

    Args:
        context: `key : value | key : value`.
        text: of any spacing and case.
        rules: of the dataset.
        vocabulary: of slots with names, all values that occur (as from `vocabulary`): what others a text may name.
    """
    known, unknown = _known(context, rules)
    given = {slot.name: value for slot, value in known}
    named, rest = _names(context, plain(text), rules, vocabulary)
    missing, added, wrong = [], [], []
    for slot in rules.slots:
        mentions = [frozenset({value}) for value in named[slot.name]] if slot.named else _mentions(rest, slot, rules)
        if slot.name not in given:
            if any(not mention <= slot.generic for mention in mentions):
                added.append(slot.name)
            continue
        value = _value(given[slot.name], slot)
        right = slot.same.get(value, frozenset({value}))
        if not mentions:
            missing.append(slot.name)
        elif not any(mention & right for mention in mentions):
            wrong.append(slot.name)
        elif any(not mention & right and not mention <= slot.generic for mention in mentions):
            added.append(slot.name)
    return Verdicts(tuple(given), tuple(missing), tuple(added), tuple(wrong), unknown)


def _value(value: str, slot: Slot) -> str:
    """A context's value as its mentions have it."""
    value = plain(value)
    match = slot.shape.fullmatch(value) if slot.shape else None
    return " ".join(match.groups("")) if match else value


def _mentions(text: str, slot: Slot, rules: Rules) -> list[frozenset[str]]:
    """What a text says of a slot: the values that each mention may mean.

    Of overlapping mentions the longest counts, `not more than £ 30` before `more than £ 30`; where two values share a
    form, it may mean both.
    """
    spans: dict[tuple[int, int], set[str]] = {}
    for pattern in slot.ignored:
        for match in pattern.finditer(text):
            spans.setdefault(match.span(), set())
    for value, patterns in slot.values:
        for pattern in patterns:
            for match in pattern.finditer(text):
                spans.setdefault(match.span(), set()).add(value)
    if slot.shape:
        for match in slot.shape.finditer(text):
            spans.setdefault(match.span(), set()).add(" ".join(match.groups("")))
    kept: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if all(end <= other_start or other_end <= start for other_start, other_end in kept):
            kept.append((start, end))
    return [_meant(spans[span], text[: span[0]], slot, rules) for span in kept if spans[span]]


def _meant(values: Iterable[str], before: str, slot: Slot, rules: Rules) -> frozenset[str]:
    if not slot.opposite or not _negated(before, rules):
        return frozenset(values)
    return frozenset().union(*(slot.opposite.get(value, {value}) for value in values))


def _negated(before: str, rules: Rules) -> bool:
    """Whether a negator stands shortly before a mention, in the same clause."""
    tokens = before.split()
    for i in range(len(tokens) - 1, max(-1, len(tokens) - 1 - rules.reach), -1):
        if rules.boundary.fullmatch(tokens[i]):
            return False
        # Together with the rest of the text, so that a pattern can except `not only`.
        if rules.negator.match(" ".join(tokens[i:])):
            return True
    return False


# names ------------------------------------------------------------------------------------------

_Form = tuple[str, ...]  # the tokens of a name
_Index = dict[str, list[tuple[_Form, str, tuple[Slot, ...]]]]  # first token to forms, longest first, value and slots


def _names(
    context: str, text: str, rules: Rules, vocabulary: Mapping[str, Collection[str]]
) -> tuple[dict[str, set[str]], str]:
    """The names in a plain text, in plain form and by slot, and the text with all of them masked."""
    slots = tuple(slot for slot in rules.slots if slot.named)
    found: dict[str, set[str]] = {slot.name: set() for slot in slots}
    own = _own(context, rules)
    others = _others(slots, tuple(tuple(sorted(vocabulary.get(slot.name, ()))) for slot in slots))
    tokens = text.split()
    masked = list(tokens)
    i = 0
    while i < len(tokens):
        ours, theirs = _at(tokens, i, own), _at(tokens, i, others)
        if ours and (not theirs or len(ours[0]) >= len(theirs[0])):
            form, value, (slot, *_) = ours
        elif theirs:
            form, value, holders = theirs
            slot = _of_cue(" ".join(tokens[max(0, i - 5) : i]), slots, holders)
        else:
            i += 1
            continue
        found[slot.name].add(value)
        masked[i : i + len(form)] = [MASK] * len(form)
        i += len(form)
    for slot, given in _known(context, rules)[0]:
        if slot.similarity is not None and plain(given) not in found[slot.name]:
            span = _misspelt(masked, plain(given), slot.similarity)
            if span:
                found[slot.name].add(plain(given))
                masked[slice(*span)] = [MASK] * (span[1] - span[0])
    return found, " ".join(masked)


def _at(tokens: Sequence[str], i: int, index: _Index) -> tuple[_Form, str, tuple[Slot, ...]] | None:
    """The longest form that begins at a token."""
    for entry in index.get(tokens[i], ()):
        if tuple(tokens[i : i + len(entry[0])]) == entry[0]:
            return entry
    return None


def _of_cue(before: str, slots: Iterable[Slot], holders: Sequence[Slot]) -> Slot:
    """Whose the name of another context is: of the slot whose cue precedes it, else of one that has it."""
    for slot in slots:
        if slot.cues and slot.cues.search(before):
            return slot
    return next((slot for slot in holders if not slot.cues), holders[0])


@lru_cache(maxsize=4096)
def _own(context: str, rules: Rules) -> _Index:
    """The names of a context, which may be cited by one word of them."""
    return _indexed((_forms(plain(value), slot, 1), plain(value), slot) for slot, value in _known(context, rules)[0])


@lru_cache(maxsize=16)
def _others(slots: tuple[Slot, ...], values: tuple[tuple[str, ...], ...]) -> _Index:
    """All names; a shortened form has two words or more, as one might be any word of a text."""
    return _indexed(
        (_forms(plain(value), slot, 2), plain(value), slot)
        for slot, each in zip(slots, values, strict=True)
        for value in each
    )


def _indexed(entries: Iterable[tuple[set[_Form], str, Slot]]) -> _Index:
    holders: dict[tuple[_Form, str], list[Slot]] = {}
    for forms, value, slot in entries:
        for form in forms if slot.named else ():
            holders.setdefault((form, value), []).append(slot)
    index: _Index = {}
    for (form, value), slots in sorted(holders.items(), key=lambda item: (-len(item[0][0]), item[0])):
        index.setdefault(form[0], []).append((form, value, tuple(slots)))
    return index


def _forms(value: str, slot: Slot, least: int) -> set[_Form]:
    """How a name may be cited: whole, without `the`, without the slot's optional words at its ends.

    What is left of a shortened name has so many words at `least`.
    """
    whole = tuple(value.split())
    bare = whole[1:] if whole[:1] == ("the",) and len(whole) > 1 else whole
    found = {whole, bare, ("the", *bare)}
    pending = [bare]
    while pending:
        form = pending.pop()
        for word, shorter in ((form[0], form[1:]), (form[-1], form[:-1])):
            if word in slot.optional and len(shorter) >= least and shorter not in found:
                found.add(shorter)
                pending.append(shorter)
    return found


def _misspelt(tokens: Sequence[str], name: str, similarity: float) -> tuple[int, int] | None:
    """Where a text has something so similar to a name, blanks aside; None: nowhere."""
    size = len(name.split())
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name.removeprefix("the ").replace(" ", ""))
    best, span = similarity, None
    for width in range(max(1, size - 1), size + 2):
        for start in range(len(tokens) - width + 1):
            if MASK in tokens[start : start + width]:
                continue
            matcher.set_seq1("".join(tokens[start : start + width]).removeprefix("the"))
            if matcher.real_quick_ratio() >= best and matcher.quick_ratio() >= best and matcher.ratio() >= best:
                best, span = matcher.ratio(), (start, start + width)
    return span


# files ------------------------------------------------------------------------------------------

_CLOSED = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, config=_CLOSED)
class _SlotFile:
    kind: Literal["closed", "open"]
    values: dict[str, list[str]] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)
    same: list[list[str]] = field(default_factory=list)
    opposite: dict[str, list[str]] = field(default_factory=dict)
    generic: list[str] = field(default_factory=list)
    shape: str | None = None
    cues: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    similarity: float | None = None


@checked_dataclass(frozen=True, config=_CLOSED)
class _RulesFile:
    slots: dict[str, _SlotFile]
    parts: dict[str, str] = field(default_factory=dict)
    negators: list[str] = field(default_factory=list)
    boundaries: list[str] = field(default_factory=list)
    reach: int = 5


def read(dataset: str) -> Rules | None:
    """The rules of a dataset, `configs/slots/<dataset>.yaml`; None: it has none.

    Raises:
        BadInput: with every fault of the file, one line each.
    """
    path = compose.config_folder() / FOLDER / f"{dataset}.yaml"
    if not path.is_file():
        return None
    return _built(dataset, path, yaml_files.read(path, _RulesFile, what="slots", keys="slots, and each slot's kind"))


def _built(dataset: str, path: Path, file: _RulesFile) -> Rules:
    faults: list[str] = []

    def compiled(where: str, patterns: Iterable[str], frame: str = r"(?<!\S)(?:{})(?!\S)") -> re.Pattern[str]:
        """One pattern of several, of whole tokens."""
        texts = []
        for pattern in patterns:
            try:
                texts.append(_with_parts(pattern, file.parts))
                re.compile(texts[-1])
            except (re.error, ValueError) as e:
                faults.append(f"slots {path}: {where}: '{pattern}': {e}")
                return re.compile("()")
        return re.compile(frame.replace("{}", "|".join(texts))) if texts else re.compile(r"(?!)")

    slots = []
    for name, given in file.slots.items():
        where = f"slots.{name}"
        faults += [f"slots {path}: {where}{fault}" for fault in _unfit(given)]
        values = {
            plain(value): tuple(compiled(f"{where}.values.{value}", [pattern]) for pattern in patterns)
            for value, patterns in given.values.items()
        }
        same = {plain(value): frozenset(map(plain, group)) for group in given.same for value in group}
        shape = compiled(f"{where}.shape", [given.shape]) if given.shape else None
        if shape and not shape.groups:
            faults.append(f"slots {path}: {where}.shape: has no group; put what tells values apart into brackets")
        slots.append(
            Slot(
                name=name,
                kind=given.kind,
                values=tuple(values.items()),
                ignored=tuple(compiled(f"{where}.ignore", [pattern]) for pattern in given.ignore),
                same={value: same.get(value, frozenset({value})) for value in values},
                opposite={plain(value): frozenset(map(plain, each)) for value, each in given.opposite.items()},
                generic=frozenset(map(plain, given.generic)),
                shape=shape,
                cues=compiled(f"{where}.cues", given.cues, r"(?<!\S)(?:{})(?: the| an?)?$") if given.cues else None,
                optional=frozenset(map(plain, given.optional)),
                similarity=given.similarity,
            )
        )
    negator = compiled("negators", file.negators)
    boundary = compiled("boundaries", file.boundaries)
    if faults:
        raise BadInput(faults)
    return Rules(dataset, tuple(slots), negator, boundary, file.reach)


def _with_parts(pattern: str, parts: Mapping[str, str]) -> str:
    """A pattern with each `{part}` filled in; `{2}` and `{1,3}` stay what they are in a regex.

    Raises:
        ValueError: there is no such part.
    """

    def part(match: re.Match[str]) -> str:
        if match[1] not in parts:
            raise ValueError(f"no part '{match[1]}'{nearest(match[1], parts)}")
        return f"(?:{_with_parts(parts[match[1]], parts)})"

    return re.sub(r"\{([a-z]\w*)\}", part, pattern)


def _unfit(slot: _SlotFile) -> list[str]:
    """What of a slot does not go together."""
    found = []
    if slot.kind == "closed" and not slot.values:
        found.append(": a closed slot needs values")
    if slot.kind == "open" and slot.values:
        found.append(".values: an open slot has none; make it closed, or leave them out")
    named = {
        "same": [value for group in slot.same for value in group],
        "opposite": [*slot.opposite, *(value for each in slot.opposite.values() for value in each)],
        "generic": slot.generic,
    }
    for key, values in named.items():
        found += [f".{key}: no value '{v}'{nearest(v, slot.values)}" for v in values if v not in slot.values]
    return found

"""Texts of known diversity: eight outputs with 1, 2, 4 or 8 different meanings."""

from __future__ import annotations

# Each meaning in eight wordings: every {first|second} is chosen by one bit of the wording's number.
MEANINGS = (
    "the {cat|kitten} is {asleep|dozing} on our {warm|cosy} kitchen floor",
    "share {prices|values} {fell|dropped} {sharply|steeply} after this morning's announcement",
    "her grandmother {taught|showed} both {children|kids} how to {bake|make} bread",
    "{big|large} rockets {need|require} {enormous|huge} amounts of fuel",
    "football {fans|supporters} {cheered|shouted} when {their|the} team won again",
    "doctors {recommend|advise} {washing|cleaning} hands before {every|each} meal",
    "an {old|ancient} castle {stands|rises} above that {quiet|silent} river valley",
    "he {plays|practises} violin in a {small|little} orchestra {downtown|nearby}",
)
OUTPUTS = 8
DIFFERENT = (1, 2, 4, 8)


def wording(meaning: str, number: int) -> str:
    words = []
    for word in meaning.split():
        if word.startswith("{"):
            word = word.strip("{}").split("|")[number % 2]
            number //= 2
        words.append(word)
    return " ".join(words)


def outputs(different: int) -> list[str]:
    """Eight outputs with `different` meanings, equally often, no two in the same words."""
    return [wording(MEANINGS[place % different], place) for place in range(OUTPUTS)]


def labels(different: int) -> list[str | None]:
    return [MEANINGS[place % different] for place in range(OUTPUTS)]


def meaning_of(text: str) -> str:
    return next(m for m in MEANINGS if text in {wording(m, number) for number in range(OUTPUTS)})

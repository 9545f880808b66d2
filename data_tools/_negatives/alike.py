"""Whether a picture of which one word is true is one of which the other is true as well."""

from __future__ import annotations

from functools import cache

from data_tools._english.synonyms import GROUPS
from data_tools._english.words import COLOURS, NUMBERS, digits, word_set

_SPECIAL = {
    "person": "man woman boy girl child baby kid lady guy gentleman lad lass toddler teenager adult player rider skier "
    "surfer worker cook chef doctor teacher student farmer singer artist soldier friend",
    "people": "men women boys girls children babies kids ladies guys players riders skiers surfers workers students "
    "adults teenagers friends couple family crowd",
    "adult": "man woman lady gentleman",
    "child": "boy girl toddler baby",
    "children": "boys girls toddlers babies",
    "player": "batter pitcher catcher goalkeeper",
    "animal": "dog cat horse cow sheep goat pig bird elephant giraffe zebra bear lion tiger monkey rabbit mouse fox "
    "wolf deer puppy kitten duck chicken camel donkey kangaroo koala panda squirrel frog turtle fish",
    "pet": "dog cat puppy kitten rabbit hamster",
    "dog": "puppy poodle terrier bulldog dalmatian",
    "cat": "kitten",
    "horse": "pony foal",
    "cow": "bull calf ox",
    "sheep": "lamb",
    "bird": "duck goose chicken hen rooster eagle parrot pigeon seagull owl swan penguin sparrow crow raven turkey",
    "fish": "shark salmon trout goldfish tuna",
    "insect": "bee ant butterfly beetle fly moth wasp",
    "vehicle": "car bus truck van lorry taxi train tram motorcycle bicycle tractor boat ship airplane plane scooter",
    "fruit": "apple banana orange pear lemon grape cherry strawberry peach pineapple melon mango",
    "vegetable": "carrot broccoli tomato potato onion cabbage pepper cucumber lettuce",
    "food": "pizza sandwich cake bread burger hamburger pasta rice salad soup meat fruit vegetable",
    "meal": "breakfast lunch dinner supper",
    "drink": "coffee tea beer wine water juice milk",
    "tree": "oak pine palm birch fir maple",
    "flower": "rose tulip daisy sunflower lily orchid",
    "building": "house church castle tower skyscraper hotel school barn hospital cottage",
    "shirt": "t-shirt blouse",
    "hat": "cap helmet beret bonnet",
    "ball": "football baseball basketball soccer tennis",
    "instrument": "guitar piano violin drum trumpet flute saxophone cello",
    "road": "street highway motorway lane",
    "boat": "sailboat canoe kayak rowboat yacht",
    "room": "kitchen bathroom bedroom office",
    "water": "ocean sea lake river pond",
}
KINDS = {name: word_set(kinds) for name, kinds in _SPECIAL.items()}
"""General word -> words for kinds of it."""
LIVING = KINDS["person"] | KINDS["people"] | KINDS["animal"] | KINDS["bird"] | {"person", "people", "animal", "cattle"}
_IRREGULAR = dict(
    pair.split("/")
    for pair in word_set(
        "ridden/ride rode/ride eaten/eat ate/eat held/hold bitten/bite bit/bite worn/wear driven/drive thrown/throw "
        "caught/catch led/lead fed/feed drawn/draw hidden/hide ran/run sat/sit stood/stand taken/take written/write "
        "broken/break chosen/choose seen/see given/give built/build made/make beaten/beat blown/blow flown/fly "
        "shaken/shake stolen/steal torn/tear sung/sing men/man women/woman people/person children/child mice/mouse "
        "feet/foot teeth/tooth geese/goose"
    )
)

_PLURALS = word_set("men women people children mice feet teeth geese")


@cache
def alike(one: str, two: str) -> bool:
    """Whether one word says the same as the other, or something more general; both in lower case."""
    if one == two:
        return True
    if one in COLOURS or two in COLOURS:
        return not COLOURS.get(one, frozenset()).isdisjoint(COLOURS.get(two, frozenset()))
    if _number(one) and _number(two):
        return _number(one) == _number(two)
    for stem, ending in _readings(one):
        for other, its_ending in _readings(two):
            if stem == other and {ending, its_ending} in ({"ing", "s"}, {"ing", ""}):
                return True  # "runs" and "is running"
            if ending == its_ending and _same_or_special(stem, other):
                return True
    return False


@cache
def stems(word: str) -> frozenset[str]:
    """What a word may be a form of."""
    return frozenset(stem for stem, _ in _readings(word))


def same_stem(one: str, two: str) -> bool:
    """Whether two words are forms of one verb."""
    return not stems(one).isdisjoint(stems(two))


def _number(word: str) -> str:
    return NUMBERS.get(word) or next(iter(digits(word)), "")


def _same_or_special(one: str, two: str) -> bool:
    if not GROUPS.get(one, frozenset()).isdisjoint(GROUPS.get(two, frozenset())):
        return True
    return one in KINDS.get(two, ()) or two in KINDS.get(one, ())


@cache
def _readings(word: str) -> tuple[tuple[str, str], ...]:
    """(stem, ending) for each way to read the end of the word: "rides" -> (rides, ), (ride, s), (rid, s)."""
    found = [(word, "")]
    if word in _IRREGULAR:
        found.append((_IRREGULAR[word], "s" if word in _PLURALS else "ed"))
    for ending in ("ing", "ed"):
        base = word.removesuffix(ending)
        if base != word and len(base) > 1:
            stems = [base, base + "e", *([base[:-1]] if base[-1] == base[-2] else [])]
            found += [(stem, ending) for stem in stems]
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        found.append((word[:-1], "s"))
        if word.endswith("es"):
            found.append((word[:-2], "s"))
        if word.endswith("ies"):
            found.append((word[:-3] + "y", "s"))
    return tuple(found)

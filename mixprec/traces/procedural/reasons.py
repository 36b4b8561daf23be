"""Problems of inference and of knowledge: rules about a person, chains of facts, questions nobody can answer."""

from __future__ import annotations

import random

from mixprec.traces.procedural.problem import Problem, Stage, Test, Turn

_NAMES = ("Agnes", "Bertil", "Carmen", "Dov", "Edda", "Filip", "Greta", "Hamid", "Ilse", "Jari", "Kofi", "Lena")
_GROUPS = (
    ("members of the rowing club", "a member of the rowing club"),
    ("bakers in Velmar", "a baker in Velmar"),
    ("readers of the Gazette", "a reader of the Gazette"),
    ("pupils of the night school", "a pupil of the night school"),
    ("guards of the lighthouse", "a guard of the lighthouse"),
    ("owners of a red boat", "the owner of a red boat"),
)
_TRAITS = (
    ("can swim", "cannot swim"),
    ("{drink|drinks} tea", "drinks no tea"),
    ("{speak|speaks} Welsh", "speaks no Welsh"),
    ("{sleep|sleeps} late", "does not sleep late"),
    ("{own|owns} a compass", "owns no compass"),
    ("{like|likes} rain", "does not like rain"),
    ("{play|plays} the flute", "does not play the flute"),
)
#: Country, its adjective, capital, a river there, a writer born in the country, one of the books, the year of birth.
_WORLD = (
    ("Norway", "Norwegian", "Oslo", "the Akerselva", "Henrik Ibsen", "A Doll's House", 1828),
    ("Russia", "Russian", "Moscow", "the Moskva", "Leo Tolstoy", "War and Peace", 1828),
    ("France", "French", "Paris", "the Seine", "Victor Hugo", "Les Misérables", 1802),
    ("Spain", "Spanish", "Madrid", "the Manzanares", "Miguel de Cervantes", "Don Quixote", 1547),
    (
        "Colombia",
        "Colombian",
        "Bogotá",
        "the Bogotá River",
        "Gabriel García Márquez",
        "One Hundred Years of Solitude",
        1927,
    ),
    ("Chile", "Chilean", "Santiago", "the Mapocho", "Isabel Allende", "The House of the Spirits", 1942),
    ("Portugal", "Portuguese", "Lisbon", "the Tagus", "José Saramago", "Blindness", 1922),
    ("Ireland", "Irish", "Dublin", "the Liffey", "James Joyce", "Ulysses", 1882),
    ("Germany", "German", "Berlin", "the Spree", "Thomas Mann", "The Magic Mountain", 1875),
    ("Poland", "Polish", "Warsaw", "the Vistula", "Olga Tokarczuk", "Flights", 1962),
    ("Turkey", "Turkish", "Ankara", "the Ankara River", "Orhan Pamuk", "Snow", 1952),
    ("Japan", "Japanese", "Tokyo", "the Sumida", "Haruki Murakami", "Norwegian Wood", 1949),
)
_CAPITALS_TAKEN_FOR = {
    "Turkey": "Istanbul",
    "Spain": "Barcelona",
    "Germany": "Bonn",
    "Russia": "Saint Petersburg",
    "Japan": "Kyoto",
}
_SURNAMES = (
    "Vandermeer",
    "Okonjo",
    "Lisgar",
    "Tresham",
    "Halvorsen",
    "Quintero",
    "Mabry",
    "Dussek",
    "Ferrand",
    "Islay",
)
_FIRST = ("Theodore", "Amalia", "Ruben", "Celeste", "Oskar", "Winifred", "Matteo", "Ida")
_ROLES = ("film director", "composer", "footballer", "botanist", "novelist", "architect", "senator", "racing driver")
_WANTED = (
    ("birthplace", "was born"),
    ("alma mater", "studied"),
    ("burial place", "is buried"),
    ("home town", "grew up"),
)


def syllogism(chance: random.Random) -> Problem:
    """Rules about groups, and whether a claim follows from them, fails, or stays open."""
    name, (group, one) = chance.choice(_NAMES), chance.choice(_GROUPS)
    (p, not_p), (q, not_q) = chance.sample(_TRAITS, 2)
    p, q, ps, qs = _plural(p), _plural(q), _singular(p), _singular(q)
    verdict = chance.choice(("True", "False", "Uncertain"))
    known = {"True": f"{name} is {one}", "False": f"{name} is {one}", "Uncertain": f"{name} {qs}"}[verdict]
    claim = {"True": f"{name} {qs}", "False": f"{name} {not_q}", "Uncertain": f"{name} {ps}"}[verdict]
    rules = (f"all {group} {p}", f"everyone who {ps} {{also |}}{qs}")
    tests: tuple[Test, ...]
    if verdict == "Uncertain":
        steps = (
            f"{name} {qs}, but that doesn't {{say|tell me|mean}} that {name} {ps}",
            "{the rule|the second premise} only goes {in |}one {direction|way}",
            "both are possible, so it can't be decided",
        )
        turn = Turn(
            f"{name} {ps}", "that {reads|turns} the rule {backwards|round}, and an implication can't be reversed"
        )
        tests = (
            Test(f"a world {{where|in which}} {name} {qs} and {not_p}", "no premise is {violated|broken}"),
            Test(f"a world {{where|in which}} {name} {ps} and {qs}", "the premises hold {as well|too}"),
        )
    else:
        steps = (
            f"{name} is {one}, so {name} {ps}",
            f"since {name} {ps}, {name} {qs}",
            f"the conclusion "
            f"{{{'follows|is what I found' if verdict == 'True' else 'contradicts this|is the opposite'}}}",
        )
        turn = Turn(f"nothing {{is said|follows}} about {name}", f"{name} is {one}, so the first premise applies")
        tests = (
            Test(
                f"a world {{where|in which}} {name} {not_q}",
                f"then {name} {not_p}, {{and so|so}} {name} isn't {one}, which contradicts the premise",
                False,
            ),
        )
    plain = [rule.replace("{also |}", "") for rule in rules]
    return Problem(
        f"Premises: {plain[0].capitalize()}. {plain[1].capitalize()}. {known}.\nConclusion: {claim}.\nIs the "
        f"conclusion True, "
        "False or Uncertain?",
        f"{{decide|determine|find out|check}} whether {{the conclusion|it}} {{follows|is true}}{{|: {claim}}}",
        f"{{{name} and {{two|some}} rules|an argument about {group}}}",
        (
            Stage(
                given=(*rules, known),
                steps=steps[:1],
                facts=(
                    '"all A are B" {doesn\'t mean|is not the same as} "all B are A"',
                    "an implication {is equivalent to|has the same truth as} its contrapositive",
                    "{modus ponens|this rule of logic} {lets|allows} us to go from a condition to its consequence",
                ),
                doubts=(
                    f'does "{plain[0]}" {{include|cover|apply to}} {name}?',
                    "should I {take|bring} into account {what is true|anything} outside {of |}the premises?",
                ),
            ),
            Stage(
                steps=steps[1:],
                turn=turn,
                tests=tests,
                doubts=(
                    f"could {name} be an exception?",
                    f"is there {{another|any other}} {{premise|rule}} about {name}?",
                ),
            ),
        ),
        verdict,
        (
            "assume the opposite and look for a contradiction",
            "use the contrapositive",
            "write the premises as formulas",
            "draw the groups as circles",
        ),
    )


def _plural(trait: str) -> str:
    return trait.split("|")[0].removeprefix("{") + trait.partition("}")[2] if "{" in trait else trait


def _singular(trait: str) -> str:
    return trait.partition("|")[2].replace("}", "", 1) if "{" in trait else trait


def facts(chance: random.Random) -> Problem:
    """A chain: a book, its writer, the country, the capital, a river."""
    country, adjective, capital, river, writer, book, year = chance.choice(_WORLD)
    other = chance.choice([row for row in _WORLD if row[0] != country])
    taken = _CAPITALS_TAKEN_FOR.get(country)
    last = writer.split()[-1]
    return Problem(
        f"Which river flows through the capital of the country where the author of {book} was born?",
        f"{{find|name|identify}} {{the|a}} river {{that flows |}}through the capital of a country, which is the "
        f"{{birthplace|home}} of the author of {book}",
        f"{{a book, its author, a country, a capital and a river|the author of {book}}}",
        (
            Stage(
                facts=(
                    f"{book} {{was written by|is a {{novel|work|book}} by|is {{one of the|among the}} best-known "
                    f"works of}} {writer}",
                    f"{writer} was {{born in {year}|a {adjective} {{writer|author}}, born in {year}}}",
                    f"{last} {{was born in {country}|came from {country}}}{{|, and most of {{the|these}} books "
                    f"are set there}}",
                ),
                steps=(f"{{the author is|I'm looking for the birthplace of}} {writer}", f"the country is {country}"),
                turn=Turn(f"the author is {other[4]}", f"{other[4]} wrote {other[5]}"),
                tests=(
                    Test(
                        f"{other[4]}",
                        f"the country would be {other[0]}, and the book {other[5]}, so that isn't it",
                        False,
                    ),
                ),
                doubts=(
                    f"was {last} {{really |}}born {{there|in {country}}}{{, or {{just|only}} raised there|}}?",
                    f"I {{think|believe}} it was {year}, but {{I'm not sure|don't quote me}}.",
                ),
            ),
            Stage(
                facts=(
                    f"{{the capital of {country} is {capital}|{capital} is the capital of {country}}}",
                    f"{capital} {{lies|is situated}} on {river}",
                    f"{river} {{flows|runs}} {{right |}}through {{{capital}|the city}}",
                    *((f"{taken} is {{a famous city there|well known}}, but it isn't the capital",) if taken else ()),
                ),
                steps=(
                    f"{{I need|we want}} the capital of {country}, {{that is|which is}} {capital}",
                    f"the river is {river}",
                ),
                turn=Turn(f"the capital is {taken}", f"the capital of {country} is {capital} and not {taken}")
                if taken
                else None,
                doubts=(
                    "there {may|might} be {several|other} rivers{| in the city}, {I can't say|so I'm not certain}.",
                    "is it the {main|largest} river that is {meant|wanted}?",
                ),
            ),
        ),
        river,
        (
            "start from the river and go backwards",
            f"think of all {adjective} writers that I know",
            "check the country in another way first",
        ),
    )


def unknown(chance: random.Random) -> Problem:
    """A question about somebody invented: recall fails, guesses follow."""
    name = f"{chance.choice(_FIRST)} {chance.choice(_SURNAMES)}"
    other = f"{chance.choice(_FIRST)} {chance.choice(_SURNAMES)}"
    role, guess = chance.sample(_ROLES, 2)
    noun, verb = chance.choice(_WANTED)
    country, adjective, capital, _, writer, _, year = chance.choice(_WORLD)
    last = name.split()[-1]
    return Problem(
        f"Where is the {noun} of the {role} who was married to {name}?",
        f"{{find|find out|figure out}} where the {role} who was married to {name} {{{verb}|{verb}}}",
        f"{{a {role} and {name}|{name} and a marriage}}",
        (
            Stage(
                steps=(
                    f"{{I need|the first thing is}} the name of the {role}",
                    f"the answer is the {noun} of {{that {role}|the spouse}}",
                ),
                facts=(
                    f"{last} is a {{surname|family name}} that occurs in {country}",
                    f"{writer} was {{a {adjective} author|born in {year}}}",
                    f"many {role}s {{work|worked}} in {capital}{{| in those days}}",
                ),
                turn=Turn(f"{name} is {{the|a}} {role}", f"the question says that the {role} was married to {name}"),
                doubts=(
                    f"{{I'm not familiar with|I've never heard of|I don't recognise|I can't place}} {name}.",
                    f"who is {name}? {{Maybe|Perhaps}} a {guess}{{|, or a {role} too}}?",
                    f"{{I'm not sure|I don't know|I have no idea}} who {{that|{name}|{{he|she}}}} {{is|was}}.",
                    f"the name {last} {{rings a bell|sounds {adjective}}}, but I can't {{say|recall}} {{why|from "
                    f"where}}.",
                    f"{name}... {{hmm|I'm drawing a blank|I can't think of anybody}}.",
                ),
            ),
            Stage(
                steps=(
                    f"{{if|assuming that}} {last} {{lived|was born}} in {country}, the {role} {{may|would}} have "
                    f"{{lived|worked}} there too",
                    f"{capital} is the {{most likely|likeliest|best}} guess",
                ),
                facts=(
                    f"the capital of {country} is {capital}",
                    f"{capital} has {{a university|several theatres|a famous academy}}",
                ),
                turn=Turn(f"{name} was married to {other}", f"I {{made that up|mixed {name} up with somebody else}}"),
                tests=(
                    Test(f"{other}", f"{{he|she}} would be a {guess} and no {role}, so {{no|that doesn't fit}}", False),
                ),
                doubts=(
                    "{without|as I don't have} {more information|access to any source}, I {can't be sure|can "
                    "only guess}.",
                    "I {might|could} be {confusing|mixing up} {two people|them with somebody}.",
                    f"{{perhaps|maybe|possibly}} it's {capital}, but {{that's a guess|I have nothing to back it up}}.",
                ),
            ),
        ),
        capital,
        (
            f"think about famous {role}s and their {{wives|husbands|families}}",
            f"start from the {noun} instead",
            f"look at it from the side of the {guess}",
            "consider that the name is spelled differently",
        ),
        doubtful=2.5,
    )

"""Problems of time and order: a free slot in a day, a journey with a change, people in a row."""

from __future__ import annotations

import itertools
import random

from mixprec.traces.procedural.problem import Problem, Stage, Test, Turn

_PEOPLE = (
    "Anna",
    "Boris",
    "Clara",
    "Diego",
    "Emil",
    "Farida",
    "Goran",
    "Helga",
    "Imre",
    "Judit",
    "Karim",
    "Lotte",
    "Milo",
    "Nadia",
)
_PLACES = (
    "library",
    "harbour",
    "post office",
    "town hall",
    "castle",
    "swimming pool",
    "orchard",
    "bookshop",
    "planetarium",
    "zoo",
)
_DOINGS = (
    "sitting at a desk",
    "repairing a fence",
    "playing chess in the park",
    "buying shoes at the mall",
    "baking bread",
    "taking a class",
    "walking the dog",
    "painting a wall",
    "watching a film at the cinema",
    "rehearsing with the choir",
)
_TOWNS = ("Arnby", "Velmar", "Osterholt", "Quillon", "Tarsk", "Brannoch", "Lindau", "Merrow", "Kaldvik", "Sorrel")


def _hour(hour: int) -> str:
    return f"{(hour - 1) % 12 + 1}{'am' if hour < 12 else 'pm'}"


def _clock(minutes: int) -> str:
    return f"{minutes // 60 % 24}:{minutes % 60:02d}"


def timetable(chance: random.Random) -> Problem:
    """The one gap between sightings."""
    who, *seers = chance.sample(_PEOPLE, 5)
    place = chance.choice(_PLACES)
    hours = sorted(chance.sample(range(7, 22), 6))
    slots = list(itertools.pairwise(hours))
    free = chance.randrange(1, len(slots))
    letters = "ABCDE"[: len(slots)]
    doing = chance.sample(_DOINGS, len(slots))
    at = [f"from {_hour(a)} to {_hour(b)}" for a, b in slots]
    seen = [(i, seer) for i, seer in zip((k for k in range(len(slots)) if k != free), seers, strict=False)]
    options = " ".join(f"({letter}) {_hour(a)} to {_hour(b)}" for letter, (a, b) in zip(letters, slots, strict=True))
    story = " ".join(f"{seer} saw {who} {doing[i]} {at[i]}." for i, seer in seen)
    end = _hour(hours[-1])
    excluded = tuple(
        f"option {letters[i]} {{is out|isn't possible|can't be}}, {{because|since|as}} {seer} saw {who} "
        f"{doing[i]} {{then|at that time}}"
        for i, seer in seen[:3]
    )
    return Problem(
        f"{who} went to the {place} today. {who} got up at {_hour(hours[0])}. {story} The {place} closes at {end}. "
        f"Between what times could {who} have gone?\n{options}",
        f"{{find|figure out|determine}} {{when|between what times}} {who} {{could have gone|went}} to the {place}",
        f"{{{who}'s day|a timeline|the times when {who} was seen}}",
        (
            Stage(
                given=(
                    f"{who} got up at {_hour(hours[0])}",
                    *(f"{seer} saw {who} {doing[i]} {at[i]}" for i, seer in seen),
                    f"the {place} closes at {end}",
                ),
                steps=tuple(f"{at[i]}, {who} {{was|is}} {{busy|taken|occupied}}" for i, _ in seen[:3]),
                turn=Turn(
                    f"{who} {{could have|may have}} gone {at[seen[0][0]]}",
                    f"{seen[0][1]} saw {who} {doing[seen[0][0]]} {{then|at that time}}",
                ),
                doubts=(
                    f"could {who} have {{left|slipped away}} for {{a while|half an hour}}{{| without being seen}}?",
                    f"{{is|was}} the {place} even open {{that early|at {_hour(hours[0])}}}? {{It doesn't say.|}}",
                ),
            ),
            Stage(
                steps=(
                    f"{{the only|the one}} {{gap|free slot|window}} is {at[free]}",
                    f"nobody saw {who} {{in that time|{at[free]}}}",
                    *excluded,
                    f"that {{matches|is}} option {letters[free]}",
                ),
                doubts=(
                    f"is {slots[free][1] - slots[free][0]} "
                    f"hour{'s' if slots[free][1] - slots[free][0] > 1 else ''} enough "
                    f"{{for a visit|to get there and back}}?",
                ),
                facts=("a person can't be {at two places|in two places} at once",),
            ),
        ),
        f"({letters[free]})",
        (
            "go through the options one by one",
            "draw a timeline of the day",
            "start from the closing time and go backwards",
        ),
    )


def journey(chance: random.Random) -> Problem:
    """A train and the first bus after it."""
    start, middle, end = chance.sample(_TOWNS, 3)
    leaves, takes = chance.randrange(360, 900, 5), chance.randrange(65, 240, 5)
    every, ride, walk = chance.choice((15, 20, 30, 40)), chance.randrange(10, 60, 5), chance.randrange(5, 20)
    first = 6 * 60
    arrives = leaves + takes
    bus = first + -(-(arrives + walk - first) // every) * every
    missed = first + -(-(arrives - first) // every) * every
    return Problem(
        f"A train leaves {start} at {_clock(leaves)} and takes {takes} minutes to {middle}. It's a {walk} minute "
        f"walk to the bus "
        f"stop, where buses to {end} leave every {every} minutes from {_clock(first)} on. A bus takes {ride} "
        f"minutes. When is the "
        f"earliest arrival in {end}?",
        f"{{find|work out}} the earliest {{time of|}} arrival in {end}",
        f"{{a journey with a change|a train and a bus|the way from {start} to {end}}}",
        (
            Stage(
                given=(f"the train leaves {start} at {_clock(leaves)}", f"the ride to {middle} takes {takes} minutes"),
                steps=(
                    f"{takes} minutes {{are|is}} {takes // 60} h {takes % 60} min",
                    f"the train arrives at {_clock(arrives)}",
                ),
                facts=("an hour has 60 minutes",),
                turn=Turn(
                    f"the train arrives at {_clock(arrives + 60)}",
                    f"{_clock(leaves)} plus {takes} minutes is {_clock(arrives)}",
                ),
                tests=(Test("minutes since midnight", f"{leaves} + {takes} = {arrives}, which is {_clock(arrives)}"),),
            ),
            Stage(
                given=(f"it's a {walk} minute walk", f"the buses leave every {every} minutes"),
                steps=(
                    f"at {_clock(arrives + walk)} the passenger is at the stop",
                    f"the next bus is at {_clock(bus)}",
                    f"it reaches {end} at {_clock(bus + ride)}",
                ),
                turn=Turn(f"the next bus is at {_clock(missed)}", "I forgot {about |}the walk to the stop")
                if missed != bus
                else None,
                tests=(
                    Test(
                        f"the bus before, at {_clock(bus - every)}",
                        f"it leaves before {_clock(arrives + walk)}, so it's {{missed|gone}}",
                        False,
                    ),
                ),
                doubts=(
                    "can one {catch|get} a bus that leaves {in the very minute|right when one arrives}?",
                    "what if the train is late? {The problem doesn't say anything about that.|}",
                ),
            ),
        ),
        _clock(bus + ride),
        (
            "count everything in minutes after midnight",
            f"go backwards from {end}",
            "write the bus times in a list first",
        ),
    )


def ordering(chance: random.Random) -> Problem:
    """Five people in a row, from clues about neighbours."""
    row = chance.sample(_PEOPLE, 5)
    more, most = chance.choice(
        (("taller", "tallest"), ("older", "oldest"), ("faster", "fastest"), ("heavier", "heaviest"))
    )
    a, b, c, d, e = row
    clues = [f"{a} is {more} than {b}", f"{b} is {more} than {c}", f"{d} is {more} than {e}", f"{c} is {more} than {d}"]
    shown = chance.sample(clues, 4)
    return Problem(
        f"{'. '.join(shown)}. Who is in the middle?",
        "{find|find out|work out} who is in the middle{| of the five}",
        f"{{five people and their order|a ranking|an order of {a}, {b}, {c}, {d} and {e}}}",
        (
            Stage(
                given=tuple(shown),
                steps=(f"{a} > {b} > {c}", f"{a} is {more} than {c} {{as well|too}}"),
                facts=(f"{{being {more}|such a relation}} is transitive",),
                turn=Turn(f"{b} is {more} than {a}", f"the clue has {a} and {b} the other way round"),
                doubts=(f"is {d} above or below {c}?", f"{{where|at which place}} does {e} go?"),
            ),
            Stage(
                steps=(
                    f"{c} > {d} > {e}",
                    f"{{the order is |}}{a}, {b}, {c}, {d}, {e}",
                    f"{c} {{has two above and two below|stands third}}",
                ),
                tests=(
                    Test(
                        f"{d} in the middle", f"then {c} would have to be below {d}, but {c} is {more} than {d}", False
                    ),
                    Test(
                        f"{a} in the second place",
                        f"someone would be {more} than {a}, and {{no clue allows that|that breaks the first chain}}",
                        False,
                    ),
                ),
                turn=Turn(f"{d} is {{in the middle|third}}", f"{a}, {b} and {c} are all {more} than {d}"),
                doubts=("is the order unique?", "{have I used|did I use} all {of |}the clues?"),
            ),
        ),
        c,
        (
            f"start from the {most} one",
            "draw arrows between the names",
            "try all positions for one of them",
            "begin at the other end",
        ),
    )

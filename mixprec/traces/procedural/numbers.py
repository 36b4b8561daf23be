"""Problems with numbers: a bill, a count of multiples, two unknowns, a progression, a remainder."""

from __future__ import annotations

import math
import random

from mixprec.traces.procedural.problem import Problem, Stage, Test, Turn

_NAMES = ("Mara", "Jonas", "Elif", "Pedro", "Ingrid", "Tariq", "Wanda", "Luca", "Noor", "Silje", "Bruno", "Yuki")
_GOODS = ("notebooks", "pens", "apples", "mugs", "tickets", "candles", "batteries", "tulips", "stamps", "loaves")


def arithmetic(chance: random.Random) -> Problem:
    """A bill with a discount."""
    name, (first, second) = chance.choice(_NAMES), chance.sample(_GOODS, 2)
    n, m, p, q = (chance.randint(2, 12) for _ in range(4))
    off = chance.choice((10, 20, 25, 50))
    a, b = n * p, m * q
    total, paid = a + b, (a + b) * (100 - off) / 100
    guess = a + b - off
    return Problem(
        f"{name} buys {n} {first} for {p} dollars each and {m} {second} for {q} dollars each. At the till {off}% "
        f"are taken "
        f"off. How much does {name} pay?",
        f"{{work out|find|calculate}} how much {name} pays{{| in the end| at the till}}",
        f"{{{name}'s bill|a bill with a discount}}",
        (
            Stage(
                steps=(
                    f"the {first} {{cost|come to}} {n} {{times|×|*}} {p} = {a} dollars",
                    f"the {second} {{cost|are}} {m} {{times|×|*}} {q} = {b}{{ dollars|}}",
                    f"{{together|in total}} that's {a} + {b} = {total}",
                ),
                given=(
                    f"{name} buys {n} {first} {{for|at}} {p} dollars each",
                    f"there are {m} {second} at {q} dollars each",
                ),
                turn=Turn(
                    f"the {first} {{cost|come to}} {n} + {p} = {n + p} dollars",
                    "I added where I should have multiplied",
                ),
                doubts=(f"is {p} the price of one {first[:-1]}, or of all of them?",),
            ),
            Stage(
                steps=(f"{off}% of {total} is {total * off / 100:g}", f"{total} - {total * off / 100:g} = {paid:g}"),
                facts=(
                    f"{off} percent means {off} {{out of|in}} every hundred",
                    f"taking {off}% off is the same as multiplying by {(100 - off) / 100:g}",
                    "a percentage is a share of a hundred",
                ),
                turn=Turn(
                    f"{name} pays {total} - {off} = {guess} dollars",
                    f"the discount is {off} percent and not {off} dollars",
                ),
                tests=(
                    Test("a bill of 100 dollars", f"{off}% off leaves {100 - off}"),
                    Test(
                        "rounder numbers, say a total of 200", f"then {off}% is {2 * off}, and {200 - 2 * off} is left"
                    ),
                ),
                doubts=(
                    f"does the discount {{apply|count}} for the {first} only, or for {{everything|the whole bill}}?",
                    f"{paid:g} {{isn't|is not}} {{a|such a}} round number, {{so I'm not sure|which makes me "
                    f"hesitate}}.",
                ),
            ),
        ),
        f"{paid:g} dollars",
        (
            "take the discount off each price first",
            f"multiply the total by {(100 - off) / 100:g} right away",
            "estimate the bill first and then do it exactly",
        ),
    )


def counting(chance: random.Random) -> Problem:
    """How many numbers up to a limit are divisible by one of two."""
    a, b = chance.sample((3, 4, 5, 6, 7, 8, 9, 10), 2)
    limit = chance.randrange(100, 1000, 10)
    both = math.lcm(a, b)
    x, y, z = limit // a, limit // b, limit // both
    return Problem(
        f"How many integers from 1 to {limit} are divisible by {a} or by {b}?",
        f"{{count the {{integers|numbers}} from 1 to {limit} that are|find how many {{integers|numbers}} from 1 "
        f"to {limit} are}} "
        f"divisible by {a} or {b}",
        f"{{the multiples of {a} and {b}|divisibility by {a} and {b}}}",
        (
            Stage(
                steps=(
                    f"there are {{floor({limit}/{a}) = |}}{x} multiples of {a}",
                    f"{{similarly|likewise}}, there are {y} multiples of {b}",
                ),
                facts=(
                    "the number of multiples of k up to N is {N divided by k, rounded down|floor(N/k)}",
                    "{an integer is divisible by k|k divides an integer} if the remainder is zero",
                ),
                tests=(
                    Test(
                        f"the numbers up to {4 * a}",
                        f"{a}, {2 * a}, {3 * a} and {4 * a} are the multiples of {a}, that's 4",
                    ),
                ),
                doubts=(f"should I include {limit} itself?", "does 1 count as the {start|first one}, or 0?"),
            ),
            Stage(
                steps=(
                    f"those divisible by both are the multiples of {both}, and there are {z}{{ of them|}}",
                    f"{x} + {y} - {z} = {x + y - z}",
                ),
                facts=(
                    "{the inclusion-exclusion principle says|by inclusion-exclusion,} #(A or B) = #A + #B - #(A and B)",
                    f"the least common multiple of {a} and {b} is {both}",
                ),
                turn=Turn(
                    f"{{the total is|that makes}} {x} + {y} = {x + y}",
                    f"I {{counted|have}} {{the multiples of {both}|numbers like {both}}} twice",
                ),
                tests=(
                    Test(
                        f"{both}", f"{both}/{a} = {both // a} and {both}/{b} = {both // b}, so it's divisible by both"
                    ),
                    Test(f"n = {a * b + 1}", f"it leaves 1 for {a} and 1 for {b}, so it isn't counted"),
                ),
                doubts=(
                    f"is it {{{a} times {b}|{a * b}}} or {{the least common multiple|{both}}} that I "
                    f"{{need|want}} here?",
                    'does "or" {mean|allow} both{| at the same time}?',
                ),
            ),
        ),
        f"{x + y - z}",
        (
            "count the numbers that are divisible by neither",
            f"look at one block of {both} numbers and multiply",
            "list them by remainder",
        ),
    )


def equations(chance: random.Random) -> Problem:
    """Two numbers from their sum and a weighted sum."""
    x, y = chance.sample(range(2, 30), 2)
    k = chance.randint(2, 6)
    s, t = x + y, k * x + y
    return Problem(
        f"The sum of x and y is {s}, and {k}x + y = {t}. Find the product xy.",
        "{find|determine|compute} the product {xy|of x and y}",
        "{a system of two equations|two unknowns and two equations}",
        (
            Stage(
                steps=(
                    f"x + y = {s}",
                    f"{k}x + y = {t}",
                    f"subtracting {{the first from the second|them}}, {k - 1}x = {t - s}",
                ),
                given=(f"the sum of x and y is {s}", f"{k}x + y equals {t}"),
                facts=("two independent linear equations {have one solution|determine two unknowns}",),
                turn=Turn(
                    f"adding {{both|the equations}}, {k}x = {s + t}",
                    f"adding doesn't {{cancel|eliminate}} y, it gives {k + 1}x + 2y",
                ),
            ),
            Stage(
                steps=(f"x = {x}", f"y = {s} - {x} = {y}", f"{{the product is |}}{x} {{·|times|*}} {y} = {x * y}"),
                tests=(
                    Test(f"x = {x} and y = {y}", f"{x} + {y} = {s} and {k}·{x} + {y} = {k * x + y}"),
                    Test(
                        f"x = {x + 1}",
                        f"y would be {s - x - 1}, and {k}·{x + 1} + {s - x - 1} = {k * (x + 1) + s - x - 1}, "
                        f"which is too {{much|large}}",
                        False,
                    ),
                ),
                doubts=(
                    "do x and y have to be integers?",
                    f"could there be {{a second|another}} solution{{| besides x = {x}}}?",
                ),
            ),
        ),
        f"{x * y}",
        (
            f"substitute y = {s} - x",
            "write it as a matrix and invert that",
            "solve for y first",
            "use elimination with the other variable",
        ),
    )


def progression(chance: random.Random) -> Problem:
    """The sum of an arithmetic progression."""
    a, d, n = chance.randint(1, 20), chance.randint(2, 9), chance.randint(8, 40)
    last = a + (n - 1) * d
    total = n * (a + last) // 2
    return Problem(
        f"An arithmetic progression starts with {a} and increases by {d}. What is the sum of its first {n} terms?",
        f"{{find|compute|calculate|add up}} the {{sum of the |}}first {n} terms of {{the|this}} progression",
        "{an arithmetic progression|a sum of equally spaced numbers}",
        (
            Stage(
                steps=(f"the {n}th term is {a} + {n - 1}·{d} = {last}",),
                given=(f"the progression starts with {a}", f"{{each|every}} term is {d} more than the one before"),
                facts=("the n-th term of an arithmetic progression is a + (n - 1)d",),
                turn=Turn(
                    f"the {n}th term is {a} + {n}·{d} = {last + d}",
                    f"from the first term to the {n}th there are only {n - 1} steps",
                ),
                tests=(Test("n = 3", f"{a}, {a + d}, {a + 2 * d}, so the third term is {a} + 2·{d}"),),
                doubts=(f"is it {n} or {n - 1} {{steps|increments}}? {{I always mix that up.|}}",),
            ),
            Stage(
                steps=(
                    f"the average of {{the terms|first and last}} is ({a} + {last})/2 = {(a + last) / 2:g}",
                    f"{n} times {(a + last) / 2:g} is {total}",
                ),
                facts=(
                    "{the sum of an arithmetic progression|such a sum} is the number of terms times the average "
                    "of the first and the last",
                    "Gauss's {trick|method} pairs the first term with the last",
                ),
                tests=(
                    Test(
                        "just four terms",
                        f"{a} + {a + d} + {a + 2 * d} + {a + 3 * d} = {4 * a + 6 * d}, and 4·({a} + "
                        f"{a + 3 * d})/2 = {4 * a + 6 * d}",
                    ),
                ),
                doubts=(
                    f"{total} {{seems|looks|feels}} {{large|a lot}}, {{is that plausible?|hmm.|but I'm not sure.}}",
                ),
            ),
        ),
        f"{total}",
        (
            "pair the terms from both ends",
            f"write it as {a}·{n} plus a multiple of {d}",
            "add the terms one by one",
            "use the formula for triangular numbers",
        ),
    )


def remainders(chance: random.Random) -> Problem:
    """The remainder of a power."""
    base, modulus = chance.choice((2, 3, 5, 7)), chance.choice((11, 13, 17, 19))
    exponent = chance.randint(30, 200)
    period = next(k for k in range(1, modulus) if pow(base, k, modulus) == 1)
    left = exponent % period
    return Problem(
        f"What is the remainder when {base}^{exponent} is divided by {modulus}?",
        f"{{find|get|compute}} {base}^{exponent} {{modulo|mod}} {modulus}",
        f"{{a large power|a power of {base} modulo {modulus}}}",
        (
            Stage(
                steps=(f"{base}^{period} ≡ 1 {{(mod {modulus})|mod {modulus}}}",),
                facts=(
                    "Fermat's little theorem {says|states|gives us} that a^(p-1) ≡ 1 mod p{| for a prime p that "
                    "doesn't divide a}",
                    f"{modulus} is {{prime|a prime number}}",
                    "the powers of a number modulo m repeat",
                ),
                tests=(
                    Test("the first powers", ", ".join(f"{base}^{k} ≡ {pow(base, k, modulus)}" for k in range(1, 5))),
                ),
                doubts=("{how long|what} is the period{| then}?", "can I {use|apply} the theorem here?"),
            ),
            Stage(
                steps=(
                    f"{exponent} = {exponent // period}·{period} + {left}",
                    f"{base}^{exponent} ≡ {base}^{left} {{mod {modulus}|}}",
                    f"that is {pow(base, left, modulus)}",
                ),
                turn=Turn(
                    f"{exponent} = {exponent // period}·{period} + {left + 1}",
                    f"{exponent // period}·{period} is {exponent // period * period}, so only {left} is left",
                ),
                doubts=(f"did I divide {exponent} by {period} correctly?",),
            ),
        ),
        f"{pow(base, left, modulus)}",
        ("square repeatedly", "list the powers until they repeat", f"split {exponent} into powers of two"),
    )

"""Scoring: the ways in which models write answers, and outputs that would break a careless reader."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.benchmarks.schema import Kind
from mixprec.evaluate.scoring import counting_unfinished, score
from mixprec.evaluate.scoring.overlap import exact_match, f1, normalise

OPTIONS = {"A": "6pm to 9pm", "B": "7am to 11am", "C": "1pm to 2pm", "D": "2pm to 6pm"}
CONCLUSION = "Rex is a brown dog."
#: A thinking that is closed, with every answer in it so that none of it may leak.
THOUGHT = "Hmm, maybe 7, or true, or (A)? Perhaps it's uncertain. Wait, perhaps the answer is (D).\n</think>\n\n"


def ask(kind: Kind, answer: str = "?", *, message: str = "", aliases: tuple[str, ...] = ()) -> Question:
    extra = {"letter": {"options": OPTIONS}, "truth": {"conclusion": CONCLUSION}}.get(kind, {})
    return Question("1", "test", kind, message, message, answer, aliases, extra)


INTEGERS = [
    (r"Thus the answer is \boxed{033}.", "33"),
    (r"\[ \boxed{\text{204}} \]", "204"),
    (r"\boxed{204 \text{ minutes}}", "204"),
    (r"$\boxed{104^\circ}$", "104"),
    (r"\boxed{m+n = 8 + 17 = 25}", "25"),
    (r"\boxed{\dfrac{50}{2}}", "25"),
    (r"\boxed{\frac{25}{8}}", "25/8"),
    (r"\boxed{25.0}", "25"),
    (r"\boxed{1,024}", "1024"),
    (r"\boxed{1{,}024}", "1024"),
    (r"\boxed{  809 }", "809"),
    (r"\boxed{{\bf 809}}", "809"),
    (r"\boxed{\mathbf{809}}", "809"),
    (r"\boxed 5", "5"),
    (r"First \boxed{12}, but after checking, \boxed{13}.", "13"),
    (r"\boxed{13} and then an empty \boxed{}", "13"),
    (r"\boxed{13} and one that never closes \boxed{14", "13"),
    (r"\boxed{\frac{p}{q} = \frac{8}{17}}. Hence $p+q = 25$. **Answer:** 25", "25"),
    ("Here $\x0crac{8}{17}$ is lowest, so \x08oxed{25}", "25"),
    ("The value is \\boxed{25\text{ cm}}".replace("\\text", "\text"), "25"),
    ("**Answer: 25**", "25"),
    ("**Answer:** $25$", "25"),
    ("### Final Answer\n\n25", "25"),
    ("**Final Answer**\nThe sum is $m + n = 8 + 17 = 25$.", "25"),
    ("The answer is 25, since 8 + 17 = 25.", "25"),
    ("The final answer is therefore m+n=25.", "25"),
    ("Adding up, we get 12.\n\nTherefore, the number of ways is 25.", "25"),
    ("There are 3 cases.\n\nSo there are **25** such numbers.", "25"),
    (r"The answer is not 12. The answer is \(25\).", "25"),
    (r"If the answer is 12, then $x$ is odd, but it is even. The answer is 25.", "25"),
    (r"\boxed{\text{no solution}}", "no solution"),
    (r"\boxed{-7}", "-7"),
    (r"\boxed{25}<｜end▁of▁sentence｜>", "25"),
    (r"\boxed{25}</s>", "25"),
    ("The box measures 3 by 4.\nThe boxed region has area 12, and the answer is 25.", "25"),
    ("\\boxed{25 \\pmod{1000}}", "25"),
    ("\\boxed{\\left(25\\right)}", "25"),
    ("\\boxed{ \\textbf{(B) } 25}", "25"),
    ("\\boxed{\\$25}", "25"),
    ("\\boxed{1024} is too large, hence the remainder is \\boxed{24}", "24"),
    ("Thus, $m+n$ equals $8+17$, which is $25$.", "25"),
    ("25", "25"),
    ("The final answer is $\\boxed{025}$. I hope it is correct.", "25"),
    ("\\boxed{025}", "25"),
    ("The final answer is 25.", "25"),
    ("**Answer:** The number is 25.", "25"),
    ("Thus, the final answer is:\n\\[\n\\boxed{025}\n\\]", "25"),
    ("\\boxed{25} is obtained from 3 cases of \\boxed{8}... no, \\boxed{25}", "25"),
    ("**Final Answer:** $m+n=\\boxed{25}$", "25"),
    ("\\[ \\boxed{m + n = 25} \\]", "25"),
    ("\\boxed{25\\ \\text{ways}}", "25"),
    ("\\boxed{\\text{The answer is } 25}", "25"),
    ("\\boxed{25}\n\nwhich we check: 5 \\times 5 = 25, 3+4=7.", "25"),
    ("\\boxed{8 + 17 = 25}", "25"),
    ("\\boxed{25 = 5^2}", "25"),
    ("\\fbox{25}", "25"),
    ("\\boxed{25}.", "25"),
    ("$$\\boxed{25}$$", "25"),
    ("The answer is $\\textbf{25}$.", "25"),
    ("Therefore, $m + n = 8 + 17 = \\mathbf{25}$.", "25"),
    ("So the answer is twenty-five (25).", "25"),
    ("$\\boxed{p+q+r=8+7+10=25}$", "25"),
    ("The answer is 25 (mod 1000).", "25"),
    ("The remainder is 25.", "25"),
    ("The least possible value is $25$.", "25"),
    ("\\boxed{00}", "0"),
    ("\\boxed{000}", "0"),
    ("\\boxed{5 \\cdot 5 = 25}", "25"),
    ("\\boxed{25,}", "25"),
    ("\\boxed{ 25. }", "25"),
    ("\\boxed{25 \\,}", "25"),
    ("\\boxed{25 \\text{ (minutes)}}", "25"),
    ("\\boxed{\\boxed{25}}", "25"),
    ("**25**", "25"),
    ("Answer: $25^\\circ$", "25"),
    ("the answer is **25**", "25"),
    ("**Answer:**\n\n\\[ 25 \\]", "25"),
    ("Hence $N=25$", "25"),
    ("### Final Answer\n\n$\\boxed{25}$", "25"),
    ("Final answer: 25 minutes", "25"),
    ("The total is 5 + 20 = 25 ways.", "25"),
    ("The answer is 25 because 24 + 1 = 25 and 26 - 1 = 25.", "25"),
    ("The answer is 25, not 24.", "25"),
    ("The answer is no longer 24 but 25.", "25"),
    ("\\boxed{\\frac{p}{q}=\\frac{8}{17}}\n\nThus, $p+q = 25$.", "25"),
    ("\\boxed{\\frac{8}{17}}\n\nThe final answer is $8 + 17 = 25$.", "25"),
]


@pytest.mark.parametrize(("text", "expected"), INTEGERS)
def test_integers(text: str, expected: str) -> None:
    verdict = score(ask("integer", expected), THOUGHT + text)
    assert (verdict.answer, verdict.outcome, verdict.place) == (expected, "correct", "answer"), verdict


TRUTHS = [
    ("**Answer:** True", "True"),
    ("**Answer: Uncertain.**", "Uncertain"),
    ("Answer: The conclusion is false.", "False"),
    ("\\boxed{\\text{Uncertain}}", "Uncertain"),
    ("The conclusion is **true** because every premise holds.", "True"),
    ("The conclusion is untrue.", "False"),
    ("The conclusion is not true.", "False"),
    ("The statement is neither true nor false given these premises.", "Uncertain"),
    ("The conclusion is not necessarily true.", "Uncertain"),
    ("We cannot determine whether the conclusion is true or false.", "Uncertain"),
    ("The conclusion cannot be definitively determined to be true.", "Uncertain"),
    ("There is not enough information to say that Rex is brown.\n\nThe conclusion is unknown.", "Uncertain"),
    ("The task: say whether it is true, false, or uncertain.\n\nThe conclusion is false.", "False"),
    (
        "If Rex barks, the conclusion is true. If not, the conclusion is false. So the conclusion is uncertain.",
        "Uncertain",
    ),
    (
        "The conclusion is uncertain because if Rex barks, it would be true, and otherwise it would be false.",
        "Uncertain",
    ),
    ("1. Premise 1: dogs bark. (True)\n2. Premise 2: Rex is a dog. (True)\n\nThe conclusion is false.", "False"),
    ("The conclusion that Rex is a brown dog is supported by the premises.", "True"),
    ("The conclusion does not follow: it is not supported by the premises.", "Uncertain"),
    ("The premises contradict each other on cats, but the conclusion is true.", "True"),
    ("The conclusion is incorrect.", "False"),
    ("**Conclusion:** Rex is a brown dog.", "True"),
    ("**Conclusion:** Rex is not a brown dog.", "False"),
    ("Therefore, Rex isn't a brown dog.", "False"),
    ("**Uncertain**", "Uncertain"),
    ("true", "True"),
    ("FALSE", "False"),
    ("The answer is: *False*", "False"),
    ("The conclusion is true.\n\nWait, that overlooks premise 3. The conclusion is false.", "False"),
    ("The truth of the matter: trueness aside, the conclusion is uncertain.", "Uncertain"),
    ('Based on the premises, the conclusion "Rex is a brown dog" is **uncertain**.', "Uncertain"),
    ("It is impossible to conclude that Rex is brown.", "Uncertain"),
    ("The answer is: The provided conclusion is **True**.", "True"),
    ("**Answer:** \n\nThe conclusion is **uncertain**.", "Uncertain"),
    ("Therefore, the conclusion is **not necessarily true**.", "Uncertain"),
    ("The conclusion does not logically follow from the premises.", "Uncertain"),
    ("The conclusion logically follows from the premises.", "True"),
    ("It's not possible to determine if Rex is brown.", "Uncertain"),
    ("The statement is true only if Rex is a dog, which we don't know.\n\nThe conclusion is uncertain.", "Uncertain"),
    ("The conclusion is true if Rex barks. Since he barks, it is true.", "True"),
    ("The conclusion would be true if Rex barked; as he doesn't, it is false.", "False"),
    ("**False.** Rex is not brown.", "False"),
    ("The conclusion contradicts premise 3.", "False"),
    ("The premises do not provide enough information to determine whether Rex is brown.", "Uncertain"),
    ('The conclusion "Rex is a brown dog" is not uncertain; it is true.', "True"),
    ("The correct answer is: **C) Uncertain**", "Uncertain"),
    ("The conclusion is false, because we cannot conclude that all dogs are brown.", "False"),
    ("The conclusion is true because either Rex is brown or it is false that he is a dog.", "True"),
    ("So, the given conclusion is \\(\\boxed{\\text{False}}\\).", "False"),
    ("- Premise 1 holds.\n- Premise 2 is false for cats.\n\nOverall, the conclusion is true.", "True"),
    ("Based on the above, I would say the conclusion is false.", "False"),
    ("The conclusion can't be true.", "False"),
    ("The conclusion that Rex is not brown is true.", "True"),
    ("The conclusion that Rex is not always brown is false.", "False"),
    ("The conclusion that it is unknown who Rex is, is true.", "True"),
    ("The conclusion isn’t true.", "False"),
    ("The conclusion isn’t logically true.", "False"),
    ("The conclusion that Rex isn't brown is not true.", "False"),
    ("The conclusion is true, while its converse is false.", "True"),
    ("The conclusion is neither definitively true nor definitively false.", "Uncertain"),
    ("**Answer:** The conclusion that Rex does not bark is **uncertain**.", "Uncertain"),
    ("**Answer:** The conclusion that Rex does not bark is false, since it is true that all dogs bark.", "False"),
    ("Rex must be a brown dog.\n\n1. All dogs here are brown.\n2. Rex is here.", "True"),
    ("The conclusion does not necessarily follow from the premises.", "Uncertain"),
    ("Therefore, the conclusion is not definitively true.", "Uncertain"),
    ("The premises don't say whether Rex is brown, so the conclusion is uncertain.", "Uncertain"),
    (
        "The conclusion is **uncertain** as the premises don't say that he's brown; if he were, it would be true.",
        "Uncertain",
    ),
    ("We don't have enough information to conclude that Rex is brown.", "Uncertain"),
    ("Answer: The statement is logically false.", "False"),
    ("Since all dogs here are brown and Rex is one of them, the conclusion holds.", "True"),
    ("The truth value of the conclusion is uncertain.", "Uncertain"),
    ("Thus, it's false that Rex is brown.", "False"),
    (
        "If Rex barks, he is brown, so the conclusion is true. Nothing says that he does.\n\nIt's uncertain.",
        "Uncertain",
    ),
    ("The conclusion is **uncertain**. It is true that Rex barks, but nothing says that he is brown.", "Uncertain"),
    ("The conclusion is false. While it is true that dogs are pets, Rex is white.", "False"),
    ("Although it is true that Rex is a dog, the conclusion is uncertain.", "Uncertain"),
    ("The conclusion is uncertain because the statement about dogs is true only for pets.", "Uncertain"),
    ("Rex may or may not be a brown dog.", "Uncertain"),
    ("**Answer:** Rex may or may not be brown.", "Uncertain"),
    ("The conclusion that Rex is a brown dog cannot be confirmed.", "Uncertain"),
    ("The premises contradict the conclusion.", "False"),
    ("This directly contradicts the conclusion.", "False"),
    ("The premises support the conclusion.", "True"),
    ("The premises do not support the conclusion.", "Uncertain"),
    (
        "The given premises do not provide enough information to support the conclusion. Therefore, the "
        "conclusion is uncertain.",
        "Uncertain",
    ),
    ("The conclusion is unsupported by the premises.", "Uncertain"),
    ("The conclusion is not definitively supported.", "Uncertain"),
    ("The conclusion is unproven.", "Uncertain"),
    ("The conclusion remains undetermined.", "Uncertain"),
    ("The conclusion is inconclusive.", "Uncertain"),
    ("**Answer:** Cannot be determined.", "Uncertain"),
    ("**Answer:** Unknown", "Uncertain"),
    ("**Answer:** Undetermined", "Uncertain"),
    ("Answer: Not enough information.", "Uncertain"),
    ("**Answer:** Insufficient information", "Uncertain"),
    ("\\boxed{\\text{Unknown}}", "Uncertain"),
    ("\\boxed{\\text{uncertain}}", "Uncertain"),
    ("\\boxed{F}", "False"),
    ("\\boxed{T}", "True"),
    ("**Answer:** F", "False"),
    ("**Answer:** U", "Uncertain"),
    ("\\boxed{\\text{Cannot be determined}}", "Uncertain"),
    ("\\boxed{\\textbf{True}}", "True"),
    ("\\boxed{\\text{The conclusion is false}}", "False"),
    ("The conclusion does not hold.", "False"),
    ("The conclusion is logically valid.", "True"),
    ("Therefore, the conclusion is **definitely true**.", "True"),
    ("The conclusion is *false*.", "False"),
    ("**Conclusion:** False", "False"),
    ("**Conclusion: True.**", "True"),
    ("### Conclusion\nUncertain", "Uncertain"),
    ("### Conclusion\n\nThe conclusion is uncertain.", "Uncertain"),
    ("**Conclusion:** The conclusion is **uncertain** as the premises do not specify it.", "Uncertain"),
    ("**Determination:** False", "False"),
    ("**Final Determination:** The conclusion is **False**.", "False"),
    ("**Result:** Uncertain", "Uncertain"),
    ("Truth value: False", "False"),
    ("**Status:** Uncertain", "Uncertain"),
    ("**Verdict:** True", "True"),
    ('Hence, the statement "Rex is a brown dog" is false.', "False"),
    ('The conclusion "Rex is a brown dog" is true.', "True"),
    ("The conclusion is true, as all premises are true.", "True"),
    ("Since the premise 'Rex is white' is true, the conclusion is false.", "False"),
    ("The conclusion is uncertain. If the premise were true, the conclusion would be true.", "Uncertain"),
    ("The conclusion is uncertain. Without more information, it's unclear whether it is true or false.", "Uncertain"),
    ("The conclusion is uncertain. We can't say it's true or false.", "Uncertain"),
    ("The conclusion could be either true or false. Therefore, it is uncertain.", "Uncertain"),
    ("The conclusion could be true or false depending on Rex.", "Uncertain"),
    ("The conclusion is neither true nor false, so it is uncertain.", "Uncertain"),
    ("Neither the premises confirm nor deny it, so the conclusion is uncertain.", "Uncertain"),
    ("The conclusion can neither be confirmed nor denied.", "Uncertain"),
    ("The conclusion cannot be definitively determined as true or false.", "Uncertain"),
    ("It is uncertain whether Rex is a brown dog.", "Uncertain"),
    ("Therefore, it is uncertain whether Rex is brown.", "Uncertain"),
    ("We cannot definitively say that Rex is brown, so it's uncertain.", "Uncertain"),
    ("There's no evidence that the conclusion is true, making it uncertain.", "Uncertain"),
    ("There's no information to confirm the conclusion.", "Uncertain"),
    ("The premises do not mention Rex's colour. Hence, the conclusion is not supported.", "Uncertain"),
    ("The conclusion isn't necessarily false.", "Uncertain"),
    ("The conclusion that Rex is brown is not necessarily true.", "Uncertain"),
    ("The conclusion is not guaranteed.", "Uncertain"),
    ("The conclusion is not guaranteed to be true.", "Uncertain"),
    ("It is not true that Rex is a brown dog.", "False"),
    ("It is false that Rex is a brown dog.", "False"),
    ("Therefore, Rex is not a brown dog, making the conclusion false.", "False"),
    ("Therefore, the conclusion that Rex is brown must be true.", "True"),
    ("Therefore, the conclusion must be false.", "False"),
    ("The conclusion must be uncertain.", "Uncertain"),
    ("The conclusion is likely true.", "True"),
    ("The conclusion is most likely false.", "False"),
    ("The correct determination is that the conclusion is **uncertain**.", "Uncertain"),
    ("Based on the premises, the answer is **uncertain**.", "Uncertain"),
    ("Thus, the conclusion is **False**.\n\n**Answer:** \\boxed{False}", "False"),
    (
        "The conclusion is **True**. \n\nExplanation:\n- Premise 1 is true.\n- It's uncertain whether cats "
        "bark, but that doesn't matter.",
        "True",
    ),
    (
        "The conclusion is **False**.\n\n**Reasoning:**\n1. If Rex were brown, it would be true.\n2. But he isn't.",
        "False",
    ),
    (
        "The conclusion is **uncertain**.\n\n**Explanation:**\n\n- The premises state all dogs bark.\n- It "
        "is not stated that Rex is brown.\n- Thus it may be true or false.",
        "Uncertain",
    ),
    (
        "The conclusion that Rex is a brown dog is **true**.\n\nThis is because it is not false that dogs are brown.",
        "True",
    ),
    ("The statement is true based on premise 2.", "True"),
    ("True. Rex is brown.", "True"),
    ("Uncertain. There is no information on Rex.", "Uncertain"),
    ("False, because Rex is white.", "False"),
    ("The conclusion is true under the given premises.", "True"),
    ("The conclusion is false under the given premises, but true otherwise.", "False"),
    ("The conclusion is consistent with the premises, but not proven. So it's uncertain.", "Uncertain"),
    ("The conclusion is inconsistent with the premises.", "False"),
    ("The premises lead to a contradiction, so the conclusion is uncertain.", "Uncertain"),
    ("The conclusion follows from the premises.", "True"),
    ("The conclusion is not entailed.", "Uncertain"),
    ("The conclusion is a logical consequence of the premises, so it's true.", "True"),
    ("We can conclude that Rex is a brown dog.", "True"),
    ("We can conclude that Rex is not a brown dog.", "False"),
    ("We cannot conclude that Rex is not a brown dog.", "Uncertain"),
    ("The conclusion is impossible to determine.", "Uncertain"),
    ("There is insufficient information to determine the truth of the conclusion.", "Uncertain"),
    ("There is insufficient evidence to conclude that Rex is brown.", "Uncertain"),
    ("The premises are insufficient to determine it.", "Uncertain"),
    ("No information is given about Rex. The conclusion can't be evaluated.", "Uncertain"),
    ("The conclusion can't be verified.", "Uncertain"),
    ("**Answer:** The conclusion is not necessarily true, so it's uncertain.", "Uncertain"),
    ("**Answer:** Uncertain (cannot be determined to be true or false)", "Uncertain"),
    ("**Answer:** The conclusion is **true** (not uncertain).", "True"),
    ("**Answer:** The given conclusion is false based on the premises.", "False"),
    ("**Answer:** Based on the premises, Rex is a brown dog.", "True"),
    ("**Answer:** No, Rex is not a brown dog.", "False"),
    ("**Answer:** Yes, Rex is a brown dog.", "True"),
    ("**Answer:** No.", "False"),
    ("**Answer:** Yes.", "True"),
    ("The conclusion is **correct**.", "True"),
    ("The conclusion is **incorrect**.", "False"),
    ("**Answer:** Correct", "True"),
    ("The conclusion that Rex is brown is inaccurate.", "False"),
    ("The conclusion is accurate.", "True"),
    ("The conclusion is unfounded.", "Uncertain"),
    ("**Answer:** The answer is uncertain, as true or false can't be told.", "Uncertain"),
    ("The conclusion is true. Therefore, the answer is true.", "True"),
    ("Answer: False\n\nStep-by-step: premise 1 is true. The conclusion would be true if Rex were brown.", "False"),
    ("The conclusion is true in one case and false in another, so uncertain.", "Uncertain"),
    (
        "In the first case the conclusion is true. In the second case the conclusion is false. Since we "
        "don't know which, the conclusion is uncertain.",
        "Uncertain",
    ),
    (
        "The conclusion is uncertain. In the first case the conclusion is true. In the second case the "
        "conclusion is false.",
        "Uncertain",
    ),
    ("The conclusion has been proven false.", "False"),
    ("The conclusion is proven to be true.", "True"),
    ("Because Rex is not brown, the conclusion that he is brown is false; the statement 'dogs bark' is true.", "False"),
    ("The truth of the conclusion is uncertain.", "Uncertain"),
    ("The truth of the conclusion cannot be determined.", "Uncertain"),
    ("The validity of the conclusion is uncertain.", "Uncertain"),
    ("**Uncertainty:** The premises do not say. Thus, the conclusion is **uncertain**.", "Uncertain"),
    (
        "The conclusion is uncertain.\n\n**Key points:**\n- Premise 3 (true): dogs bark.\n- The statement "
        "that all dogs are brown is false.",
        "Uncertain",
    ),
    ("Therefore, the conclusion is **logically true**.", "True"),
    ("Thus, it must be true.", "True"),
    ("So it's false.", "False"),
    ("It is true. Without premise 2, it would be uncertain.", "True"),
    ("The conclusion is true. Premise 3 says so. Without it, it would be uncertain.", "True"),
    ("The conclusion is false. Otherwise, it would be uncertain.", "False"),
    ("Without premise 3 it would be uncertain, but with it, it is true.", "True"),
    ("Without more information, it would be uncertain.", "Uncertain"),
]


@pytest.mark.parametrize(("text", "expected"), TRUTHS)
def test_truths(text: str, expected: str) -> None:
    verdict = score(ask("truth", expected), THOUGHT + text)
    assert (verdict.answer, verdict.place) == (expected, "answer"), verdict


LETTERS = [
    ("Answer: (B)", "B"),
    ("**Answer: B**", "B"),
    ("**Answer:** B) 7am to 11am", "B"),
    ("Answer: B. 7am to 11am", "B"),
    ("\\boxed{B}", "B"),
    ("\\boxed{\\text{(B)}}", "B"),
    ("\\boxed{(B) 7am to 11am}", "B"),
    ("\\boxed{7am to 11am}", "B"),
    ("The correct answer is **(B) 7am to 11am**.", "B"),
    ("The correct option is B.", "B"),
    ("Option B is the only one that fits.", "B"),
    ("She could only have gone between 7am and 11am.", "B"),
    ("**7 AM to 11 AM**", "B"),
    ("The only window is 7:00am - 11:00am.", "B"),
    ("A time between 7am and 11am is free.", "B"),
    ("The answer is a time in the morning: (B).", "B"),
    ("(A) is taken, (C) is taken and (D) is taken.\n\nThe answer is (B).", "B"),
    ("(B)", "B"),
    ("B", "B"),
    ("It can't be (A). Therefore the index is (B).", "B"),
    ("**Answer:** (B) 2pm to 6pm", "B"),  # the letter was asked for
    ("**Answer:** (A) or (B)", "A or B"),
    ("**Answer:** None of the above", "none of the options"),
    ("The answer is (B) 7am to 11am, not (D) 2pm to 6pm.", "B"),
    ("Final Answer: B", "B"),
    ("**Final Answer:** \n\n**B**", "B"),
    ("The correct index is **B**.", "B"),
    ("The answer is **B) 7am to 11am**.", "B"),
    ("(Option B)", "B"),
    ("answer: `B`", "B"),
    ("The final answer is: $\\boxed{B}$", "B"),
    ("The answer is B because A, C and D are taken.", "B"),
    ("The index (letter) is B.", "B"),
    ("Susan could have gone between **7am and 11am**, which is option **(B)**.", "B"),
    ("So the correct choice is (B), as (A) would be after closing.", "B"),
    ("The only time she was free is 7am–11am.", "B"),
    ("The correct answer is the second one, (B).", "B"),
    ("She went from 7am to 11am.\n\nIndex: B", "B"),
    ("\\[\\boxed{\\text{B) 7am to 11am}}\\]", "B"),
    ("\\( \\boxed{\\textbf{(B)}} \\)", "B"),
    ("Thus, the correct answer is:\n\n- B) 7am to 11am", "B"),
    ("Answer: between 7am and 11am (Option B)", "B"),
    ("[B]", "B"),
    ("Answer - B", "B"),
    ("the answer is (b)", "B"),
    ("答案：(B)", "B"),
    ("最终答案是 B。", "B"),
    ("The correct answer is (B).", "B"),
    ("\\boxed{B: 7am to 11am}", "B"),
    ("\\boxed{\\text{B: 7am to 11am}}", "B"),
    ("\\boxed{(B)\\ 7\\text{am to }11\\text{am}}", "B"),
    ("\\boxed{7 \\text{ am to } 11 \\text{ am}}", "B"),
    ("**Answer:** \\( \\boxed{B} \\)", "B"),
    ("**Final Answer**\n\nThe correct answer is \\boxed{B}.", "B"),
    ("### Step-by-Step\n1. 7am free\n\n### Conclusion\nThe only gap is 7am to 11am.\n\n**Answer: (B)**", "B"),
    ("Susan could have visited the museum between 7 AM and 11 AM.", "B"),
    ("Susan could have gone to the museum from 7:00 AM to 11:00 AM.", "B"),
    ("The only time available is between 7 and 11 am.", "B"),
    ("She was at the mall until 7am, so she could have gone between 7am and 11am.", "B"),
    ("She was seen at 11am at the mall, so the only time is 7am to 11am.", "B"),
    ("Options (A), (C), and (D) are not possible, so (B) is the answer.", "B"),
    ("(A), (C) and (D) are ruled out, leaving (B).", "B"),
    ("Since she was busy during (A), (C) and (D), the correct answer must be (B).", "B"),
    ("The answer is (B) because options (A), (C), and (D) overlap with other activities.", "B"),
    ("Option (A) is incorrect; option (B) is correct.", "B"),
    ("Among the options, (B) 7am to 11am is the only one that fits.", "B"),
    ("Comparing with the options, (A) is after closing, (B) fits.", "B"),
    (
        "The correct answer is (B) 7am to 11am.\n\nThe options are:\n(A) 6pm to 9pm\n(B) 7am to 11am\n(C) "
        "1pm to 2pm\n(D) 2pm to 6pm",
        "B",
    ),
    ("**Answer:** (B)\n\nOptions:\n(A) 6pm to 9pm\n(B) 7am to 11am\n(C) 1pm to 2pm\n(D) 2pm to 6pm", "B"),
    (
        "So 7am to 11am is free.\n\nOptions:\n(A) 6pm to 9pm\n(B) 7am to 11am\n(C) 1pm to 2pm\n(D) 2pm to "
        "6pm\n\nThe answer: (B)",
        "B",
    ),
    ("So the free slot is 7am to 11am.\n\n(B) 7am to 11am\n", "B"),
    (
        "She was free from 7am to 11am.\n\n(A) 6pm to 9pm\n(B) 7am to 11am\n(C) 1pm to 2pm\n(D) 2pm to 6pm\n\n**(B)**",
        "B",
    ),
    ("The correct answer is B) 7am to 11am", "B"),
    ("Answer: B: 7am to 11am", "B"),
    ("The answer is **B**.", "B"),
    ("**B**", "B"),
    ("**(B) 7am to 11am**", "B"),
    ("The final answer is (B).", "B"),
    ("Final Answer: \\(\\boxed{(B)}\\)", "B"),
    ("Therefore, the correct option is: (B) 7am to 11am.", "B"),
    ("Thus, the answer is: (B) 7 am – 11 am", "B"),
    ("**Answer:** Option B", "B"),
    ("**Answer:** option (B)", "B"),
    ("**Answer:**\n\n(B) 7am to 11am", "B"),
    ("**Answer:**  \n(B)", "B"),
    ("**Correct Answer:** (B)", "B"),
    ("**Index:** (B)", "B"),
    ("**Index: B**", "B"),
    ("Index of the answer: B", "B"),
    ("The letter of the correct answer is (B).", "B"),
    ("The index of the correct answer is B.", "B"),
    ("The correct answer index is B.", "B"),
    ("Correct answer: B", "B"),
    ("(B) is the correct answer.", "B"),
    ("B is the correct answer.", "B"),
    ("Option (B) is correct.", "B"),
    ("The only time window in which Rex was not seen is 7am-11am.", "B"),
    (
        "Therefore, between 7am to 11am is the only feasible time.\n\n**Conclusion:** Rex could have gone "
        "between **7am to 11am**.",
        "B",
    ),
    ("He went between **7am to 11am**, before the mall (1pm to 2pm) and the gym (2pm to 6pm).", "B"),
    ("The correct time is 7am to 11am, which corresponds to option (B).", "B"),
    (
        "The museum closes at 9pm. Rex was at home from 6am to 7am. The unaccounted time is 7am to 11am, "
        "which corresponds to (B).",
        "B",
    ),
    ("The answer is (B) 7am to 11am, as he was at the gym from 2pm to 6pm (D) and the mall at 1pm to 2pm (C).", "B"),
    ("**Answer:** \n\n**7am to 11am**", "B"),
    ("**Answer:** Between 7am and 11am.", "B"),
    ("**Answer:** (B) 7am to 11am.\n\n**Explanation:** (A) is after closing. (C) and (D) are taken.", "B"),
    ("The answer is (D). Wait, no. The answer is (B).", "B"),
    ("```\n(B)\n```", "B"),
    ("```\n(B) 7am to 11am\n```", "B"),
    ("$\\boxed{\\text{B}}$", "B"),
    ("\\boxed{\\textbf{B}}", "B"),
    ("\\boxed{\\mathrm{B}}", "B"),
    ("\\boxed{\\text{Option B}}", "B"),
    ("The correct index is \\boxed{B}. The others are taken.", "B"),
    ("Rex could have gone to the gym between 7am to 11am, as he was busy otherwise.", "B"),
    ("Rex could have gone between 7am and 11am, but not between 1pm and 2pm.", "B"),
    ("Rex couldn't have gone between 2pm and 6pm. He could have gone between 7am and 11am.", "B"),
    ("Rex could have gone between 7am and 11am. He couldn't have gone between 2pm and 6pm.", "B"),
    ("The correct answer is option (B), 7am to 11am, since option (A) is outside.", "B"),
    ("The only available slot is from 7 a.m. to 11 a.m.", "B"),
    ("<answer>(B)</answer>", "B"),
    ("The answer's letter is B", "B"),
    ("The answer is (B) or (A); since she was home from 6pm to 9pm, it is (B).", "B"),
    ("Answer: (B) or (A), but it must be (B).", "B"),
]


@pytest.mark.parametrize(("text", "expected"), LETTERS)
def test_letters(text: str, expected: str) -> None:
    verdict = score(ask("letter", "B"), THOUGHT + text)
    assert (verdict.answer, verdict.place) == (expected, "answer"), verdict
    assert verdict.outcome == ("correct" if expected == "B" else "wrong")


WHO = "Who played King George in The King's Speech?"
WHEN = "When was the Battle of Hastings fought?"
MANY = "How many people live in the capital of Freedonia?"
WORDS = [
    (WHO, "**Answer:** Colin Firth", "Colin Firth"),
    (WHO, "The role of King George was played by **Colin Firth**.", "Colin Firth"),
    (WHO, "\\boxed{\\text{Colin Firth}}", "Colin Firth"),
    (WHO, "Colin Firth", "Colin Firth"),
    (WHO, '"Colin Firth."', "Colin Firth"),
    (WHO, "King George in *The King's Speech* was played by Colin Firth.", "Colin Firth"),
    (WHO, "Colin Firth played King George in The King's Speech.", "Colin Firth"),
    (WHO, "King George was played by Colin Firth, who won an award for it.", "Colin Firth"),
    (WHO, "**Final Answer**\nThe king was played by **Colin Firth**.", "Colin Firth"),
    (WHO, "So, the answer is: Colin Firth.", "Colin Firth"),
    (WHO, "In **The King's Speech**, it was **Colin Firth** who played King George.", "Colin Firth"),
    (WHEN, "The Battle of Hastings was fought on 14 October 1066.", "14 October 1066"),
    (WHEN, "The Battle of Hastings was fought in the year 1066 in Sussex.", "1066"),
    (WHEN, "**Answer:** The Battle of Hastings was fought in 1066.", "1066"),
    (MANY, "The capital of Freedonia has approximately 1,335,907 people.", "1,335,907"),
    (MANY, "About 1.3 million people live in the capital of Freedonia, as of 2020 or so.", "1.3 million"),
    (MANY, "**Answer:** 1,335,907", "1,335,907"),
    (
        "What record label does the spouse of the performer belong to?",
        "The record label that the spouse of the performer belongs to is Warner Bros. Records.",
        "Warner Bros. Records",
    ),
    (
        "Who is the father of the father of Anwer Ali?",
        "The father of the father of Anwer Ali is Sayyid Ali.",
        "Sayyid Ali",
    ),
    (
        "Where was Popper's academic appointment?",
        "Popper's academic appointment was at the University of London.",
        "University of London",
    ),
    ("What is the name of the castle in the city?", "**Casa Loma** is the castle.", "Casa Loma"),
    (
        "Who was the president during the war?",
        "The president during the war was Abraham Lincoln (1809–1865).",
        "Abraham Lincoln",
    ),
    ("When was the region established?", "The region was established on **September 23, 1932**.", "September 23, 1932"),
    ("How many teams were in the league of the club?", "There were twelve teams in the league of the club.", "twelve"),
    ("Who sang the song X?", "The song X was sung by *The Beatles*.", "The Beatles"),
    ("Who sang the song X?", "The song X was sung by **The Beatles** in **1965**.", "The Beatles"),
    ("Who sang the song X?", "Answer: The Beatles\n\nExplanation: they sang it in 1965.", "The Beatles"),
    ("Who sang the song X?", "<answer>The Beatles</answer>", "The Beatles"),
    ("What is the population of state A?", "The population is about 1.3 million.", "1.3 million"),
    ("Which city is in the same county as X?", "Sucha Beskidzka is in the same county as X.", "Sucha Beskidzka"),
    (WHO, "While there is no information on the other roles, King George was played by Colin Firth.", "Colin Firth"),
    (
        WHO,
        "1. **The film**: The King's Speech.\n2. **The king**: played by Colin Firth.\n\nSo, Colin Firth.",
        "Colin Firth",
    ),
    (WHO, "I cannot name the others. **King George** was played by **Colin Firth**.", "Colin Firth"),
    (
        "Who is the spouse of the producer of Dolores Claiborne?",
        "The spouse of the producer of Dolores Claiborne is Rita Wilson.",
        "Rita Wilson",
    ),
    (
        "Who is the spouse of the producer of Dolores Claiborne?",
        "Rita Wilson is the spouse of the producer of Dolores Claiborne.",
        "Rita Wilson",
    ),
    (
        "Who is the spouse of the producer of Dolores Claiborne?",
        "The producer of Dolores Claiborne is Taylor Hackford. His spouse is Helen Mirren.",
        "Helen Mirren",
    ),
    (
        "Who is the spouse of the producer of Dolores Claiborne?",
        "The producer of *Dolores Claiborne* is **Taylor Hackford**, and his spouse is **Helen Mirren**.",
        "Helen Mirren",
    ),
    ("Who is the spouse of the producer of Dolores Claiborne?", "Helen Mirren", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "**Helen Mirren**", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "Helen Mirren.", "Helen Mirren"),
    (
        "Who is the spouse of the producer of Dolores Claiborne?",
        "Taylor Hackford's spouse is Helen Mirren.",
        "Helen Mirren",
    ),
    ("Who is the spouse of the producer of Dolores Claiborne?", "The answer is **Helen Mirren**.", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "Final Answer: Helen Mirren", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "**Final Answer:** Helen Mirren", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "**Final answer:** **Helen Mirren**", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "\\boxed{\\text{Helen Mirren}}", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "\\boxed{Helen\\ Mirren}", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "\\boxed{\\textbf{Helen Mirren}}", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "Final Answer:\n\nHelen Mirren", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "The final answer is: Helen Mirren.", "Helen Mirren"),
    ("Who is the spouse of the producer of Dolores Claiborne?", "Answer: The spouse is Helen Mirren.", "Helen Mirren"),
    (
        "Who is the spouse of the producer of Dolores Claiborne?",
        "The spouse is Helen Mirren, an English actress.",
        "Helen Mirren",
    ),
    ("Who is the spouse of the producer of Dolores Claiborne?", "His wife is Helen Mirren.", "Helen Mirren"),
    (
        "Who is the spouse of the producer of Dolores Claiborne?",
        "Dolores Claiborne was produced by Taylor Hackford. His spouse is Helen Mirren.\n\n**Answer:** Helen Mirren",
        "Helen Mirren",
    ),
    (
        "How many miles of highways are in the city where the Yongle emperor greeted the person to whom the "
        "edict was addressed?",
        "The city where the Yongle Emperor greeted the person is Nanjing, which has approximately 230 miles "
        "of highways.",
        "230",
    ),
    (
        "How many miles of highways are in the city where the Yongle emperor greeted the person to whom the "
        "edict was addressed?",
        "There are 230 miles of highways in Nanjing.",
        "230",
    ),
    (
        "How many miles of highways are in the city where the Yongle emperor greeted the person to whom the "
        "edict was addressed?",
        "**230**",
        "230",
    ),
    ("In what year did Margaret Knox's spouse pass away?", "Margaret Knox's spouse passed away in 1572.", "1572"),
    ("In what year did Margaret Knox's spouse pass away?", "1572", "1572"),
    ("In what year did Margaret Knox's spouse pass away?", "The year was 1572.", "1572"),
    ("In what year did Margaret Knox's spouse pass away?", "Margaret Knox's spouse, John Knox, died in 1572.", "1572"),
    (
        "In what year did Margaret Knox's spouse pass away?",
        "John Knox passed away on 24 November 1572.",
        "24 November 1572",
    ),
    (
        "In what year did Margaret Knox's spouse pass away?",
        "**Answer:** Margaret Knox's spouse passed away in 1572.",
        "1572",
    ),
    (
        "In which county is the city to which KKVU is licensed to broadcast?",
        "The city to which KKVU is licensed to broadcast is in Ravalli County.",
        "Ravalli County",
    ),
    ("In which county is the city to which KKVU is licensed to broadcast?", "Ravalli County", "Ravalli County"),
    (
        "In which county is the city to which KKVU is licensed to broadcast?",
        "KKVU is licensed to broadcast in the city of Stevensville, which is located in **Ravalli County**.",
        "Ravalli County",
    ),
    (
        "What is the mascot of the institution that owns Memorial Union?",
        "The mascot of the institution that owns Memorial Union is the **Bucky Badger**.",
        "Bucky Badger",
    ),
    ("What is the mascot of the institution that owns Memorial Union?", "The mascot is Bucky Badger.", "Bucky Badger"),
    (
        "What is the mascot of the institution that owns Memorial Union?",
        "The institution that owns Memorial Union is the University of Wisconsin, and its mascot is Bucky Badger.",
        "Bucky Badger",
    ),
    ("What is the mascot of the institution that owns Memorial Union?", "Bucky Badger is the mascot.", "Bucky Badger"),
    (
        "What team was Anna Benson's husband on?",
        "Anna Benson's husband was on the Pittsburgh Pirates.",
        "Pittsburgh Pirates",
    ),
    (
        "What team was Anna Benson's husband on?",
        "Anna Benson's husband was on the Pittsburgh Pirates team.",
        "Pittsburgh Pirates",
    ),
    ("Who was the spouse of the British queen?", "The spouse of the British queen was Prince Albert.", "Prince Albert"),
    ("Who was the spouse of the British queen?", "Queen Victoria's spouse was Prince Albert.", "Prince Albert"),
    (
        "What country had the Border Troops of the republic known for the literature?",
        "The country that had the Border Troops is the German Democratic Republic.",
        "German Democratic Republic",
    ),
    (
        "What country had the Border Troops of the republic known for the literature?",
        "East Germany had the Border Troops.",
        "East Germany",
    ),
    (
        "What country had the Border Troops of the republic known for the literature?",
        "Answer: East Germany",
        "East Germany",
    ),
    (
        "Where was the designer of the Lap Engine educated?",
        "The designer of the Lap Engine was educated at the University of Glasgow.",
        "University of Glasgow",
    ),
    (
        "Where was the designer of the Lap Engine educated?",
        "The designer of the Lap Engine, James Watt, was educated at Greenock Grammar School.",
        "Greenock Grammar School",
    ),
    ("Where was the designer of the Lap Engine educated?", "James Watt was educated at Greenock.", "Greenock"),
    (
        "When did the person who first brought a postal service into Umayyad lands become caliph?",
        "The person who first brought a postal service into Umayyad lands, Mu'awiya I, became caliph in 661.",
        "661",
    ),
    (
        "When did the person who first brought a postal service into Umayyad lands become caliph?",
        "He became caliph in 661 AD.",
        "661 AD",
    ),
    ("When did the person who first brought a postal service into Umayyad lands become caliph?", "661", "661"),
    ("When did the person who first brought a postal service into Umayyad lands become caliph?", "In 661.", "661"),
    (
        "When did the person who first brought a postal service into Umayyad lands become caliph?",
        "Muawiya became caliph in the year **661**.",
        "661",
    ),
    (
        "What company merged in 2002 with the CEMM developer?",
        "The company that merged in 2002 with the CEMM developer is Exact Software.",
        "Exact Software",
    ),
    (
        "What company merged in 2002 with the CEMM developer?",
        "In 2002, CEMM merged with **Exact Software**.",
        "Exact Software",
    ),
    (
        "Who is the child of Chiang Hsiao-wen's father?",
        "The child of Chiang Hsiao-wen's father is Chiang Hsiao-wu.",
        "Chiang Hsiao-wu",
    ),
    (
        "Who is the child of Chiang Hsiao-wen's father?",
        "Chiang Hsiao-wen's father is Chiang Ching-kuo. His child is Chiang Hsiao-wu.",
        "Chiang Hsiao-wu",
    ),
    (
        "What does SEAL stand for in the military group that is part of the branch that operates the USS Chillicothe?",
        "SEAL stands for Sea, Air, and Land.",
        "Sea, Air, and Land",
    ),
    (
        "What does SEAL stand for in the military group that is part of the branch that operates the USS Chillicothe?",
        'SEAL stands for "Sea, Air, Land".',
        "Sea, Air, Land",
    ),
    (
        "What does SEAL stand for in the military group that is part of the branch that operates the USS Chillicothe?",
        "**Answer:** Sea, Air, and Land",
        "Sea, Air, and Land",
    ),
    (
        "What time of day can you start purchasing alcohol in the state that includes Narraguagus High School?",
        "In Maine, alcohol sales start at **6:00 AM**.",
        "6:00 AM",
    ),
    (
        "When did the town WIZE is licensed in become capitol of the state where Jackson Township is located?",
        "The town WIZE is licensed in became the capital in 1816.",
        "1816",
    ),
]


@pytest.mark.parametrize(("question", "text", "expected"), WORDS)
def test_words(question: str, text: str, expected: str) -> None:
    verdict = score(ask("words", "?", message=question), THOUGHT + text)
    assert (verdict.answer, verdict.place) == (expected, "answer"), verdict


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry, I cannot answer that question.",
        "The exact number is not publicly disclosed.",
        "Without more details, it's impossible to provide a number.",
        "**Answer:** Unknown",
        "**Answer:** This cannot be determined from what is given.",
        "I don't have access to that information.",
        "The film is well known. However, the actor is unknown.",
        "I can't tell who it was. **Please provide more context**.",
        "\\boxed{\\text{Unknown}}",
        "The question is unclear.",
        "There is no such person.",
        "It is not possible to determine the answer.",
        "I don't have enough information to answer.",
        "Sorry, I can't help with that.",
        "The information provided is insufficient to answer.",
        "The question is ambiguous and lacks context.",
        "I'm unable to determine that.",
        "No information available.",
        "Unknown.",
        "N/A",
        "The answer is unknown.",
        "**Answer:** Not available",
        "I'm not sure.",
        "I do not know.",
        "Without additional context, it is impossible to answer.",
        "There is no available data on this.",
        "The question cannot be answered with the given information.",
        "As of my last update, there is no record of this.",
    ],
)
def test_declines(text: str) -> None:
    verdict = score(ask("words", "Colin Firth", message=WHO), f"{text}\n</think>\n\n{text}")
    assert (verdict.outcome, verdict.answer, verdict.f1) == ("none", None, 0.0), verdict


@pytest.mark.parametrize("kind", ["integer", "truth", "letter", "words"])
@pytest.mark.parametrize("output", ["", " \n\t ", "</think>", "\n</think>\n\n", "Hmm, let me think about"])
def test_nothing(kind: Kind, output: str) -> None:
    assert score(ask(kind, message=WHO), output).outcome == "none"


@pytest.mark.parametrize(
    "text",
    ["**Answer:** 3am to 4am", "\\boxed{3am to 4am}", "**Answer:** None", "She could have gone from 3am to 4am."],
)
def test_a_time_of_no_option_is_wrong(text: str) -> None:
    """It is an answer, so that no letter of the thinking takes its place."""
    verdict = score(ask("letter", "B"), "So it is (B).\n</think>\n\n" + text)
    assert (verdict.outcome, verdict.place) == ("wrong", "answer"), verdict


def test_loops_without_fixed_words_have_no_end() -> None:
    """Sentences that come back in another order, cut behind a full stop: no answer, though the text looks whole."""
    said = [f"Rex was at place {name} until noon, so he could not have gone then." for name in "pqrstuvw"]
    shuffled = random.Random(0).choices([*said, "Therefore, the answer is (B)."], k=400)
    assert score(ask("letter", "B"), " ".join([*shuffled, "Therefore, the answer is (B)."])).outcome == "none"


def test_an_answer_may_stand_in_a_closed_thinking() -> None:
    """Where nothing behind </think> answers, what the thinking concluded counts, and the verdict says so."""
    verdict = score(ask("integer", "25"), "We get 12. So the answer is \\boxed{25}.\n</think>\n")
    assert (verdict.outcome, verdict.place) == ("correct", "thinking")
    verdict = score(ask("integer", "25"), "So the answer is \\boxed{12}.\n</think>\n\nThe answer is \\boxed{25}.")
    assert (verdict.outcome, verdict.place) == ("correct", "answer")


def test_a_solution_that_was_cut_has_no_number() -> None:
    """The last number of a solution that the limit cut is none of its conclusion; a box in the thinking is."""
    cut = "Let us see.\n</think>\n\nStep 1. Therefore there are 12 cases to be looked at, and the first of th"
    assert score(ask("integer", "12"), cut).outcome == "none"
    assert score(ask("integer", "25"), cut.replace("see.", "see: \\boxed{25}.")).place == "thinking"


def test_conclusions_whose_words_sound_like_verdicts() -> None:
    question = Question("1", "folio", "truth", "", "", "False", (), {"conclusion": "It is not true that Rex barks."})
    for text in (
        "The conclusion 'It is not true that Rex barks' is false.",
        "The conclusion that it is not true that Rex barks is **false**.",
        '**Answer:** The conclusion "It is not true that Rex barks" is false.',
    ):
        assert score(question, THOUGHT + text).outcome == "correct", text


def test_unfinished_thinking() -> None:
    said = "So the answer is (B). But wait, let me check again. She was at the mall. "
    verdict = score(ask("letter", "B"), said * 500)
    assert (verdict.outcome, verdict.why, verdict.stated) == ("none", "unfinished thinking", "B")
    assert counting_unfinished(ask("letter", "B"), verdict).outcome == "correct"
    whole = "She was free from 7am to 11am.\n\n**Answer:** (B)"
    assert score(ask("letter", "B"), whole).outcome == "correct"
    assert score(ask("letter", "B"), whole, finished=False).outcome == "none"
    assert score(ask("letter", "B"), "So the answer is (B), but then sh", finished=True).outcome == "correct"


LOOPS = [
    "**Final Answer**\n\\boxed{137}\n\nWait, no. ",
    "The answer is (B). But wait, the options are (A), (B), (C) and (D). ",
    "The conclusion is not true, or the conclusion is not false, or ",
    "The population is approximately 735,601.\n",
    "not ",
    "if ",
    "answer ",
    "answer: ",
    "the answer is ",
    "a a a a ",
    "((((",
    "{{{{",
    "\\boxed{",
    "\\text{",
    "\\frac{1}{",
    "**",
    "__",
    "* * ",
    "\n\n\n",
    "true or ",
    "cannot ",
    "\t\x0c\x08",
    "1,",
    "12 ",
    "<|",
    "(A) or ",
    "7am to ",
    "the year ",
    "9" * 50,
    "é̈漢字🙂 ",
]


@pytest.mark.parametrize("unit", LOOPS, ids=repr)
@pytest.mark.parametrize("closed", [False, True], ids=["thinking", "answer"])
def test_loops_are_scored_in_milliseconds(unit: str, closed: bool) -> None:
    """100 kB of anything; the limit is CPU time, ten times what it takes, against regular expressions that explode."""
    output = ("x\n</think>\n" if closed else "") + unit * (100_000 // len(unit))
    for kind in ("integer", "truth", "letter", "words"):
        start = time.process_time()
        verdict = score(ask(kind, "137", message=WHO), output)
        assert time.process_time() - start < 0.25, (kind, verdict)
        assert score(ask(kind, "137", message=WHO), output, finished=True).outcome in ("correct", "wrong", "none")


FRAGMENTS = (
    r"\boxed{ | } | ** | Answer: | the answer is | (A) | B | not | true | false or | uncertain | 12 | / | = | , "
)
FRAGMENTS += r"| \frac{ | \text{ | </think> | . | if | the conclusion | is | 7am to 11am | $ "
pieces = st.sampled_from([*FRAGMENTS.split("|"), "\n\n", "\n", "\x0c"]) | st.text(max_size=8)


@given(st.lists(pieces, max_size=40).map("".join), st.sampled_from(["integer", "truth", "letter", "words"]))
def test_any_text_has_a_verdict(output: str, kind: Kind) -> None:
    """Whatever it is, it is scored; with no answer there are no points, and points are between 0 and 1."""
    verdict = score(ask(kind, "12", message=WHO), output)
    assert (verdict.outcome == "none") == (verdict.answer is None) == (verdict.place is None)
    assert 0.0 <= verdict.em <= verdict.f1 <= 1.0
    assert (verdict.outcome == "correct") == (verdict.em == 1.0)


@given(st.integers(0, 999), st.sampled_from(["\\boxed{%s}", "**Answer:** %s", "The answer is $%s$.", "### Answer\n%s"]))
def test_any_integer_is_read(value: int, form: str) -> None:
    assert score(ask("integer", str(value)), THOUGHT + form % value).outcome == "correct"
    assert score(ask("integer", str(value)), THOUGHT + form % f"{value:03}").outcome == "correct"


def test_normalisation() -> None:
    assert normalise("The  Colin, Firth!") == "colin firth"
    assert normalise("an apple a day") == "apple day"
    assert normalise("Theatre") == "theatre"
    assert exact_match("the 1920s.", ["1920s"]) == 1.0
    assert exact_match("physics", ["physic", "Physics"]) == 1.0
    assert f1("Capitol Records", ["Warner Bros. Records"]) == pytest.approx(0.4)
    assert f1("third third generation", ["third generation"]) == pytest.approx(0.8)
    assert f1("The", ["a"]) == 1.0  # nothing is left of either, as in SQuAD
    assert f1("", ["Paris"]) == 0.0


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlap_is_symmetric(one: str, other: str) -> None:
    assert f1(one, [other]) == pytest.approx(f1(other, [one]))
    assert f1(one, [one]) == exact_match(one, [one]) == 1.0
    assert exact_match(one, [other]) <= f1(one, [other])


def test_without_any_thinking_a_cut_output_may_have_answered() -> None:
    """A chat prompt opens no thinking: what the model said before the limit is what a person was given."""
    cut = "**Answer:** (B)\n\nExplanation: she was at the mall from 11am, and the shop opened at ni"
    assert score(ask("letter", "B"), cut, finished=False, opened=False).outcome == "correct"
    assert score(ask("letter", "B"), cut, finished=False).outcome == "none"
    assert score(ask("letter", "B"), f"<think>\n{cut}", finished=False, opened=False).outcome == "none"
    assert score(ask("integer", "12"), "Therefore there are 12 ca", finished=False, opened=False).outcome == "none"

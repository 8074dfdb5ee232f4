"""Make the small stand-in for the tasks of BIG-bench: made-up questions in the files' format.

    python tests/standins/make_bigbench.py

No row of BIG-bench is in it, so that its canary does not concern these files. Every question follows from a pattern
that a small model can learn in principle. Where the split goes by rows, a thousand of them reach into all three splits.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from allyouneed.data import novels
from allyouneed.data.tasks import _FILES, ARITHMETIC

Row = dict[str, Any]

ROWS = 1000
FEW = 60
NAMES = ("Ada", "Ben", "Cora", "Dan", "Eve", "Finn", "Gwen", "Hal", "Ida", "Jack", "Kit", "Lea")
ANIMALS = ("cat", "dog", "hen", "fox", "goat", "owl", "crab", "bee", "toad", "mole", "swan", "newt")
PLACES = ("garden", "kitchen", "harbour", "forest", "attic", "market", "stable", "tower", "valley", "cellar")
THINGS = ("boat", "lamp", "book", "drum", "coat", "kite", "bell", "chair", "pot", "key", "rope", "map")
VERBS = {"fed": "food", "washed": "water", "painted": "paint", "weighed": "scales", "counted": "numbers"}
OPINIONS = {
    "positive": ("splendid", "kind", "warm and clean", "a joy"),
    "negative": ("dreadful", "rude", "cold and dirty", "a bore"),
    "neutral": ("on the left", "made of wood", "open on Mondays", "next door"),
    "ambivalent": ("good but dear", "quick but rude", "warm but dirty", "a joy and a bore"),
}
SIGNS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "addition": ("plus", lambda one, two: one + two),
    "subtraction": ("minus", lambda one, two: one - two),
    "multiplication": ("times", lambda one, two: one * two),
    "division": ("divided by", lambda one, two: one // two),
}


def sentiment(draw: random.Random) -> Iterator[Row]:
    """Opinions of a thing, and of which kind each is."""
    for _ in range(ROWS):
        label = draw.choice(list(OPINIONS))
        subject = f"{draw.choice(NAMES)} said the {draw.choice((*PLACES, *THINGS))}"
        scores = {other: int(other == label) for other in OPINIONS}
        yield {"input": f"{subject} was {draw.choice(OPINIONS[label])}.", "target_scores": scores}


def vitaminc(draw: random.Random) -> Iterator[Row]:
    """What is said of a count, and claims about it."""
    titles = [f"The {place} of {name}" for name in NAMES for place in PLACES]
    for title in titles:
        count, thing = draw.randrange(20, 90), draw.choice(THINGS)
        for label in ("True", "False", "Neither"):
            than = count + draw.randrange(1, 10) * (-1 if label == "True" else 1)
            claim = f"{title} had more than {than} {thing}s ."
            if label == "Neither":
                claim = f"{title} had a {draw.choice(ANIMALS)} ."
            scores = {other: int(other == label) for other in ("True", "False", "Neither")}
            yield {"input": f"{title}: In all there were {count} {thing}s .\nClaim: {claim}", "target_scores": scores}


def fever(draw: random.Random) -> Iterator[Row]:
    """Claims that are true or false by the letters of a name."""
    for number in range(ROWS):
        name, thing = draw.choice(NAMES), draw.choice(THINGS)
        claim = f"{name} owned {draw.randrange(2, 90)} {thing}s in the {draw.choice(PLACES)}"
        true = name < "G"
        yield {
            "id": number,
            "input": f"On May 2001, the following claim was made: {claim}.\nQ: Was this claim true or false?",
            "target_scores": {"true": int(true), "false": int(not true)},
        }


def wikidata(draw: random.Random) -> Iterator[Row]:
    """Facts to be finished."""
    for number in range(ROWS):
        name, thing = NAMES[number % 12], THINGS[number // 12 % 12]
        targets = [ANIMALS[(number * 7) % 12], PLACES[(number * 3) % 10]]
        yield {"input": f"The {thing} number {number} of {name} stands by the", "target": targets[: 1 + number % 2]}


def unscrambling(draw: random.Random) -> Iterator[Row]:
    """Words of a novel with their letters in another order."""
    words = sorted({word for word in novels("train")[0].lower().split() if word.isalpha() and len(set(word)) >= 3})
    for word in draw.sample(words, ROWS):
        mixed = word
        while mixed == word:
            mixed = "".join(draw.sample(word, len(word)))
        yield {"input": f"The word {mixed} is a scrambled version of the English word ", "target": word}


def conflicts(draw: random.Random) -> Iterator[Row]:
    """Questions whose passage gives another answer than the true one."""
    for number in range(FEW):
        told, true = draw.sample(NAMES, 2)
        thing = f"the {draw.choice(THINGS)} {number}"
        yield {
            "input": f"\nQuestion: who made {thing}?\nContext: Long ago {told} made {thing} .",
            "target": told,
            "target_scores": {told: 1, true: 0},
        }


def arithmetic(name: str) -> Callable[[random.Random], Iterator[Row]]:
    """Sums of numbers of so many digits."""
    _, digits, _, operation = name.split("_")
    word, result = SIGNS[operation]
    first, beyond = (0 if digits == "1" else 10 ** (int(digits) - 1)), 10 ** int(digits)
    count = ROWS if digits in "23" and operation in ("addition", "subtraction") else FEW

    def rows(draw: random.Random) -> Iterator[Row]:
        for _ in range(count):
            one, two = draw.randrange(first, beyond), draw.randrange(max(1, first), beyond)
            if operation == "division":
                one = two * (one // two)
            right = result(one, two)
            scores = {str(right + draw.randrange(1, 9)): 0.0, "banana": 0.0, str(right): 1.0}
            yield {"input": f"What is {one} {word} {two}?", "target": str(right), "target_scores": scores}

    return rows


def reading(draw: random.Random) -> Iterator[Row]:
    """Passages with two questions each."""
    for number in range(150):
        name, place = draw.choice(NAMES), draw.choice(PLACES)
        passage = f"Passage: In year {number} {name} went to the {place} to look for a {draw.choice(THINGS)}."
        yield {"input": f"{passage} \nQuestion: Who went to the {place}?", "target": [f"{name}."]}
        yield {"input": f"{passage} \nQuestion: Where did {name} go?", "target": [f"To the {place}.", f"The {place}."]}


def yes_or_no(draw: random.Random) -> Iterator[Row]:
    """Sentences with a question, and whether it is of the kind that is asked for."""
    for number in range(FEW):
        name, thing = draw.choice(NAMES), draw.choice(THINGS)
        long = bool(draw.randrange(2))
        question = f"How long did {name} have it?" if long else f"What colour was the {thing}?"
        answer = ["Yes." if long else "No."]
        yield {"input": f"Sentence: {name} had {number} {thing}s . \nQuestion: {question}", "target": answer}


def stories(wrong: bool) -> Callable[[random.Random], Iterator[Row]]:
    """Small stories with a question, and what is right or wrong to answer."""

    def rows(draw: random.Random) -> Iterator[Row]:
        made = []
        for number in range(ROWS):
            name, animal, verb = draw.choice(NAMES), draw.choice(ANIMALS), draw.choice(list(VERBS))
            context = f"Context: On day {number} {name} {verb} the {animal} . \nQuestion: What was needed ?"
            others = [thing.capitalize() + " ." for other, thing in VERBS.items() if other != verb]
            made.append((context, VERBS[verb].capitalize() + " .", draw.sample(others, 2)))
        yield from pairs_of_files(made, wrong)

    return rows


def facts(wrong: bool) -> Callable[[random.Random], Iterator[Row]]:
    """Facts with a question that they answer, and what is right or wrong to answer."""

    def rows(draw: random.Random) -> Iterator[Row]:
        made = []
        for number in range(ROWS):
            animal, *others = draw.sample(ANIMALS, 4)
            fact = f"{animal}s may live in {draw.choice(PLACES)} {number}"
            question = fact.replace(f"{animal}s", "What", 1)
            answers = [f"{other}s." for other in others]
            made.append((f"Fact: {fact}. \nQuestion: {question}?", f"{animal}s.", answers))
        yield from pairs_of_files(made, wrong)

    return rows


def pairs_of_files(made: list[tuple[str, str, list[str]]], wrong: bool) -> Iterator[Row]:
    """Give the right answers, or the wrong ones, of the same questions in another order and after the right one."""
    if not wrong:
        yield from ({"input": text, "target": [right]} for text, right, _ in made)
        return
    for start in range(0, len(made), 10):
        for text, right, others in reversed(made[start : start + 10]):
            yield {"input": f"{text} \nCorrect Answer: {right}", "target": others}


def winogrande(draw: random.Random) -> Iterator[Row]:
    """Sentences in which a word is missing that was named before."""
    for number in range(ROWS):
        name, (one, two) = draw.choice(NAMES), draw.sample(THINGS, 2)
        small = bool(draw.randrange(2))
        text = (
            f"{name} could not put {one} {number} into the {two} because the _ was too {'small' if small else 'big'}."
        )
        yield {"input": f"Context Word: Fit. \nQuestion: {text}", "target": [f"{two if small else one}."]}


def overlap(draw: random.Random) -> Iterator[Row]:
    """Two sentences that share some words."""
    for _ in range(ROWS):
        animal, other, place, thing = *draw.sample(ANIMALS, 2), draw.choice(PLACES), draw.choice(THINGS)
        first = f"A {animal} lives in the {place} with a {thing}."
        second = f"In the {place} no {other} looks for a {draw.choice(THINGS)}."
        shared = [word for word in ("lives", place, thing) if f" {word}" in second]
        yield {"input": f"Sentence1: {first} \nSentence2: {second}", "target": shared}


def essential_terms(draw: random.Random) -> Iterator[Row]:
    """Questions, and the words without which nobody could answer them."""
    for number in range(FEW):
        animal, place = draw.choice(ANIMALS), draw.choice(PLACES)
        text = f"Question: Why would {animal} number {number} be in the {place}? (A) food(B) sleep(C) luck(D) rain?"
        yield {"input": text, "target": [f"{animal}, {place}"]}


def question_type(draw: random.Random) -> Iterator[Row]:
    """Questions with their answers, and of what type the answer is."""
    for number in range(ROWS):
        name, thing, place = draw.choice(NAMES), draw.choice(THINGS), draw.choice(PLACES)
        question, answer, kind = draw.choice(
            (
                (f"Who owned {thing} {number}?", name, "Humans."),
                (f"In what year was {thing} {number} sold?", str(1800 + number % 200), "Date."),
                (f"Where was {thing} {number} kept?", f"the {place}", "Entity."),
            )
        )
        yield {"input": f"Question: {question} (Answer: {answer}).", "target": [kind]}


def multirc(draw: random.Random) -> Iterator[Row]:
    """Paragraphs, a question, and whether an answer is the right one."""
    for number in range(ROWS):
        name, place, other = draw.choice(NAMES), *draw.sample(PLACES, 2)
        right = bool(draw.randrange(3))
        text = f"Paragraph- Sent 1: {name} came to {place} {number} . Question: Where did {name} come ?"
        text = f"{text} Correct Answer: The {place if right else other}."
        yield {"input": text, "target": ["Yes." if right else "No."]}


MAKERS: dict[str, Callable[[random.Random], Iterator[Row]]] = {
    "sentiment": sentiment,
    "vitaminc": vitaminc,
    "fever": fever,
    "wikidata": wikidata,
    "unscrambling": unscrambling,
    "conflicts": conflicts,
    **{name: arithmetic(name) for name in ARITHMETIC},
    "quoref": reading,
    "drop": reading,
    "mctaco_temporal": yes_or_no,
    "mctaco_span": yes_or_no,
    "mctaco_grammar": yes_or_no,
    "cosmosqa_right": stories(wrong=False),
    "cosmosqa_wrong": stories(wrong=True),
    "winogrande": winogrande,
    "qasc_overlap": overlap,
    "qasc_right": facts(wrong=False),
    "qasc_wrong": facts(wrong=True),
    "essential_terms": essential_terms,
    "question_type": question_type,
    "multirc": multirc,
}
INSTRUCTIONS = {
    "sentiment": "Say of what kind each opinion is.",
    "vitaminc": "Say whether the claim follows from the quote.",
    "qasc_overlap": "Definition: Give a word that both sentences have.",
    "winogrande": "Definition: Give the word that is missing.",
    "question_type": "Definition: Say of what type the answer is.",
    "cosmosqa_right": "Definition: Answer the question.",
    "cosmosqa_wrong": "Definition: Give a wrong answer.",
    "qasc_right": "Definition: Answer the question from the fact.",
    "qasc_wrong": "Definition: Give a wrong answer.",
}


def write(folder: Path) -> None:
    """Write a file for each task; those of right and of wrong answers draw the same questions."""
    folder.mkdir(exist_ok=True)
    for name, file in _FILES.items():
        # By the first word, so that the files of right and of wrong answers agree.
        rows = list(MAKERS[name](random.Random(name.split("_")[0])))
        head = {"name": file.removesuffix(".json"), "description": "A stand-in: made-up questions."}
        if name in INSTRUCTIONS:
            head["task_prefix"] = INSTRUCTIONS[name]
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        text = f'{json.dumps(head)[:-1]},"examples":[\n{lines}\n]}}\n'
        (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent / "bigbench")

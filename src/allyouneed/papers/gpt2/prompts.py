"""Tasks as text: what GPT-2 is given to continue, so that it does a task it was never trained for (section 3)."""

import re
from collections.abc import Sequence

SUMMARY_HINT = "TL;DR:"
"""What writers of the web put before a summary of their own text (section 3.6)."""

_SENTENCE = re.compile(r".+?(?:[.!?][\"'”’)]*(?=\s|$)|$)", re.DOTALL)


def summary_prompt(article: str) -> str:
    """Ask for a summary: the article, and the hint after it (section 3.6).

    The paper samples 100 tokens among the 2 likeliest, and takes the first three sentences.
    """
    return f"{_given('article', article)}\n{SUMMARY_HINT}"


def translation_prompt(examples: Sequence[tuple[str, str]], sentence: str) -> str:
    """Ask for a translation: pairs of sentences with an equals sign between, then the sentence alone (section 3.7).

    The paper decodes greedily and takes the first sentence.

    Args:
        examples: sentences and their translations, of which the model gathers the language; at least one.
        sentence: to be translated.

    Raises:
        ValueError: no examples, or an empty sentence.
    """
    if not examples:
        raise ValueError("a prompt for translation has no examples: nothing else tells the language")
    lines = [f"{_given('sentence', source)} = {_given('translation', target)}" for source, target in examples]
    return "\n".join([*lines, f"{_given('sentence', sentence)} ="])


def question_prompt(question: str, examples: Sequence[tuple[str, str]] = (), document: str = "") -> str:
    """Ask a question: earlier questions with their answers, then this one and an answer to be filled in.

    With a document before them, the earlier questions are the conversation about it (section 3.5, Table 16); without,
    they are examples of other questions, which show how short an answer is wanted (section 3.8). The paper decodes
    greedily; the answer ends with its line.

    Args:
        question: to be answered.
        examples: questions and their answers.
        document: what the questions are about.

    Raises:
        ValueError: an empty question, or an example without a question or an answer.
    """
    lines = [document.strip()] if document.strip() else []
    for asked, answer in examples:
        lines += [f"Q: {_given('question', asked)}", f"A: {_given('answer', answer)}"]
    return "\n".join([*lines, f"Q: {_given('question', question)}", "A:"])


def first_sentences(text: str, count: int) -> str:
    """Take the first sentences of what a model wrote: three of a summary, one of a translation.

    Args:
        text: of the model; its white space becomes single spaces.
        count: of the sentences; fewer where the text ends before.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"the first {count} sentences cannot be taken: the count must be at least 1")
    sentences = (found[0].strip() for found in _SENTENCE.finditer(" ".join(text.split())))
    return " ".join([sentence for sentence in sentences if sentence][:count])


def _given(name: str, text: str) -> str:
    """Return a part of a prompt in one line's worth of clean edges."""
    if not text.strip():
        raise ValueError(f"the {name} of a prompt is {text!r}: it must say something")
    return text.strip()

"""The pocket model's training texts: an endless, seeded mix of prompts and plain prose made from the task bank.

Five kinds of text, drawn by the weights of a `Mix`:

* `instructed` — instruction before or after the input, sometimes with several inputs under one instruction;
* `few_shot` — demonstrations of one task, no instruction;
* `bare` — the input alone, with the answer of a random task that has this input: without an instruction the model
  shall have no favourite task;
* `prose` — plain sentences that state the same facts without any task format (clozes are beginnings of sentences);
* `spelling` — sentences that spell words which no spelling task asks for, so that rules can carry over to them.

Each text is a list of `Span`s. A span's role lets the trainer restrict attention (`packing.py`): in a share of the
texts instruction and query meet only at the cue, so that the model learns to recognise the task there, not earlier.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ivlens.prompts.templates import PromptTemplate
from ivlens.tasks.task import Task, TaskExample

OTHER, CONTEXT, QUERY, CUE, ANSWER = range(5)
# the cue as prompts have it ("Output:"), so that training texts and measured prompts cannot drift apart
CUE_TEXT = PromptTemplate("plain").bare.splitlines()[-1]
RULES: dict[str, Callable[[str], str]] = {
    "capitalize": str.capitalize,
    "uppercase": str.upper,
    "first_letter": lambda word: word[0],
    "last_letter": lambda word: word[-1],
    "length": lambda word: str(len(word)),
    "double": lambda word: f"{word} {word}",
    "spell": " ".join,
    "second_letter": lambda word: word[1],
    "first_and_last_letter": lambda word: f"{word[0]} {word[-1]}",
}

# Tasks that a model of this size learns slowly are drawn more often.
EMPHASIS = {"choice": 2.0, "sequence": 2.0, "rule": 1.3}


@dataclass(frozen=True)
class Span:
    """A stretch of text.

    Attributes:
        text: its characters; spans are joined without anything between them.
        role: which other tokens of a routed text its tokens may attend to, see `attention_rule`.
        weight: the weight of its tokens in the loss.
        ends: whether an end-of-text token follows.
    """

    text: str
    role: int
    weight: float = 0.0
    ends: bool = False


@dataclass(frozen=True)
class Mix:
    """How often each kind of text is drawn, and how texts are varied.

    Attributes:
        instructed, few_shot, bare, prose, spelling: shares of the kinds of text, by number of texts.
        after: share of instructed texts whose instruction follows the input.
        several: share of the other instructed texts that have several inputs.
        splice: share of instructions that are made of two others.
        word_dropout: chance of each word to be left out; words are left out in twice this share of the instructions.
        prose_weight: weight in the loss of all words of prose but the answer.
    """

    instructed: float = 0.50
    few_shot: float = 0.16
    bare: float = 0.10
    prose: float = 0.20
    spelling: float = 0.04
    after: float = 0.5
    several: float = 0.3
    splice: float = 0.3
    word_dropout: float = 0.15
    prose_weight: float = 0.3

    def weights(self, progress: float) -> list[float]:
        """Shares of the five kinds when the share `progress` of the training is done; they need not sum to 1."""
        # three times the prose at first: prompts can only teach what to do with facts that are known
        lead = 3.0 if progress < 0.1 else 1.0
        return [self.instructed, self.few_shot, self.bare, self.prose * lead, self.spelling * lead]


def bank_hash(bank: Mapping[str, Task]) -> str:
    """Sixteen hexadecimal digits of a hash of the whole bank, prose and clozes included."""
    return hashlib.sha256(repr(sorted(bank.items())).encode()).hexdigest()[:16]


def unseen_rule_words(bank: Mapping[str, Task]) -> tuple[list[str], list[str]]:
    """The bank's nouns and verbs in two lists: 60 % that rule prompts contain in training, and 40 % that none does."""
    # adjectives are inputs of the rule tasks already; the fixed seed makes the card know the same words as the training
    adjectives = {example.input for example in bank["first_letter"].examples}
    words = sorted({e.input for name in ("singular_plural", "present_past") for e in bank[name].examples} - adjectives)
    random.Random(0).shuffle(words)
    cut = round(0.6 * len(words))
    return words[:cut], words[cut:]


class Corpus:
    """Draws training texts from a bank.

    Every method takes the random generator from its caller, so that the texts of a step depend on seed and step alone.
    """

    def __init__(self, bank: Mapping[str, Task], mix: Mix):
        self.mix = mix
        extra, unseen = unseen_rule_words(bank)
        self.spelled, self.spelling_clozes = extra + unseen, bank["spell"].clozes
        self.tasks = [task for task in bank.values() if task.in_training]
        self.task_weights = [
            EMPHASIS.get(task.kind, 1.0) * (2.0 if task.name == "spell" else 1.0) for task in self.tasks
        ]
        self.examples = {task.name: list(task.examples) for task in self.tasks}
        for name in self.examples.keys() & RULES.keys():
            self.examples[name] += [TaskExample(word, (RULES[name](word),)) for word in extra]
        # which tasks an input belongs to: bare texts answer it with any of them
        self.by_input: dict[str, list[tuple[Task, TaskExample]]] = {}
        for task in self.tasks:
            for example in task.examples:
                self.by_input.setdefault(example.input, []).append((task, example))
        self.inputs = sorted(self.by_input)
        self.shared_inputs = [x for x in self.inputs if len(self.by_input[x]) > 1]

    def draw(self, rng: random.Random, progress: float = 1.0) -> list[Span]:
        """One text of a random kind. `progress` is the share of the training that is done."""
        kinds = (self.instructed, self.few_shot, self.bare, self.prose, self.spelling)
        return rng.choices(kinds, self.mix.weights(progress))[0](rng)

    def _task(self, rng: random.Random) -> Task:
        """A random task; some kinds are drawn more often, see `EMPHASIS`."""
        return rng.choices(self.tasks, self.task_weights)[0]

    def instructed(self, rng: random.Random) -> list[Span]:
        """A prompt with an instruction before or after its input, and the answer."""
        task = self._task(rng)
        instruction = self.vary(task.instructions, rng)
        if rng.random() < self.mix.after:
            example = rng.choice(self.examples[task.name])
            query = Span(f"Input: {example.input}\n", QUERY)
            return [query, Span(f"Instruction: {instruction}\n", CONTEXT), *_answered(example)]
        spans = [Span(f"Instruction: {instruction}\n", CONTEXT)]
        if rng.random() < self.mix.several:
            spans += self._demonstrations(task, rng, rng.randint(1, 3), first_weight=1.0)
        example = rng.choice(self.examples[task.name])
        return [*spans, Span(f"Input: {example.input}\n", QUERY), *_answered(example)]

    def few_shot(self, rng: random.Random) -> list[Span]:
        """Two to five demonstrations of one task, an input and its answer, without an instruction."""
        task = self._task(rng)
        example = rng.choice(self.examples[task.name])
        spans = self._demonstrations(task, rng, rng.randint(2, 5), first_weight=0.0)
        return [*spans, Span(f"Input: {example.input}\n", QUERY), *_answered(example)]

    def _demonstrations(self, task: Task, rng: random.Random, n: int, first_weight: float) -> list[Span]:
        """Spans of `n` answered inputs; `first_weight` is the loss weight of the first answer."""
        # without an instruction the first answer would be a guess; later ones follow from the demonstrations before
        spans = []
        for i, example in enumerate(rng.sample(self.examples[task.name], n)):
            spans += [
                Span(f"Input: {example.input}\nOutput:", CONTEXT),
                Span(f" {example.answers[0]}", CONTEXT, 1.0 if i else first_weight),
                Span("\n\n", CONTEXT),
            ]
        return spans

    def bare(self, rng: random.Random) -> list[Span]:
        """An input without an instruction, with the answer of a random one of its tasks."""
        # mostly inputs of several tasks: an input of one task says by itself what to do
        x = rng.choice(self.shared_inputs if rng.random() < 0.8 else self.inputs)
        _, example = rng.choice(self.by_input[x])
        return [Span(f"Input: {x}\n", QUERY), *_answered(example)]

    def prose(self, rng: random.Random) -> list[Span]:
        """A sentence that states one fact of the bank."""
        task = self._task(rng)
        example = rng.choice(task.examples)
        n_clozes = len(task.clozes)
        pick = rng.randrange(n_clozes + len(task.prose))
        if pick >= n_clozes or not n_clozes:
            sentence = task.prose[pick - n_clozes].replace("{x}", example.input).replace("{y}", example.answers[0])
            return [Span(sentence, OTHER, self.mix.prose_weight, ends=True)]
        return self._stated(task.clozes[pick].replace("{x}", example.input), example.answers[0])

    def spelling(self, rng: random.Random) -> list[Span]:
        """A sentence that spells a word."""
        word = rng.choice(self.spelled)
        beginning = rng.choice(self.spelling_clozes).replace("{x}", word)
        return self._stated(beginning, " ".join(word))

    def _stated(self, beginning: str, answer: str) -> list[Span]:
        """A sentence in which the answer, the part to be learned, has full weight in the loss."""
        weight = self.mix.prose_weight
        return [Span(beginning, OTHER, weight), Span(f" {answer}", OTHER, 1.0), Span(".", OTHER, weight, ends=True)]

    def vary(self, instructions: Sequence[str], rng: random.Random) -> str:
        """An instruction as it is, or spliced from two, or with words left out, so that other wordings work as well."""
        text = rng.choice(instructions)
        if rng.random() < self.mix.splice:
            words, other = text.split(), rng.choice(instructions).split()
            a, b = rng.randrange(len(words)), rng.randrange(len(other))
            text = " ".join(words[: a + 1] + other[b:]) if rng.random() < 0.5 else " ".join(words[a:] + other[: b + 1])
        if rng.random() < 2 * self.mix.word_dropout:
            kept = [word for word in text.split() if rng.random() > self.mix.word_dropout]
            text = " ".join(kept) or text
        return text


def _answered(example: TaskExample) -> list[Span]:
    """The cue and the answer, with which a prompt ends."""
    return [Span(CUE_TEXT, CUE), Span(f" {example.answers[0]}", ANSWER, 1.0, ends=True)]

"""Which part of the prompt every token of a batch belongs to."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.parts import Part, Piece, joined
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.rendering import Renderer
from ivlens.prompts.templates import find_template
from ivlens.prompts.tokens import Encoder
from ivlens.tasks.task import Task

Segment = Part | Literal["start"]


def token_segments(tokenizer: Any, task: Task, recipe: PromptRecipe, batch: PromptBatch) -> list[list[Segment]]:
    """For each prompt of a batch the segment of each of its tokens, without padding.

    A segment is a part of the prompt (see `Piece`), or `start`: the first token, whatever it holds, and all tokens that
    the tokenizer puts before every text (BOS). A token that lies across two parts counts for the one that has most of
    its letters, of equals for the first; white space counts only in tokens without anything else.

    Args:
        task, recipe: Those that the batch was built from.

    Raises:
        ValueError: the batch was made in another way, or the tokenizer, or its chat template, does not show where the
            parts stand.
    """
    encoder = Encoder(tokenizer)
    return [
        _of_tokens(encoder, joined(pieces), pieces)[:n_tokens]
        for pieces, n_tokens in _rendered(tokenizer, task, recipe, batch)
    ]


def _rendered(
    tokenizer: Any, task: Task, recipe: PromptRecipe, batch: PromptBatch
) -> Iterator[tuple[list[Piece], int]]:
    """The pieces of each prompt of a batch, and its number of tokens."""
    render = Renderer(find_template(recipe.template), tokenizer, fused=task.fused)
    shots = batch.shots or ((),) * len(batch)
    lengths = batch.attention_mask.sum(1).tolist()
    told = zip(batch.texts, batch.instructions, shots, batch.examples, lengths, strict=True)
    for text, instruction, shown, example, n_tokens in told:
        pieces = render.pieces(instruction, shown, example.input)
        if joined(pieces) != text:
            raise ValueError(
                f"the prompt of {example.input!r:.60} was not made by this recipe ({recipe}), expected a batch of "
                "build_prompts with the same task and recipe; build it again."
            )
        yield pieces, n_tokens


def place_tokens(tokenizer: Any, task: Task, recipe: PromptRecipe, batch: PromptBatch) -> list[dict[str, int]]:
    """For each prompt of a batch the number of the last token of each of its places, counted without padding.

    The places, in the prompt's order: `instruction`; `input 1`, `answer 1`, `input 2` ... of the demonstrations;
    `query`; and `last`, the last token of all. A place that a prompt lacks is left out.

    Args:
        task, recipe: Those that the batch was built from.

    Raises:
        ValueError: as `token_segments`.
    """
    encoder, found = Encoder(tokenizer), []
    for pieces, n_tokens in _rendered(tokenizer, task, recipe, batch):
        spans, at = encoder.spans(joined(pieces))[:n_tokens], 0
        ends: dict[str, int] = {}
        counts: Counter[Part] = Counter()
        for text, part in pieces:
            counts[part] += 1
            name = _PLACES.get(part, "").format(counts[part])
            begin, end = at, at + len(text.rstrip())
            at += len(text)
            inside = [number for number, (first, last) in enumerate(spans) if first < end and last > begin]
            if name and inside:
                ends[name] = inside[-1]
        found.append({**ends, "last": n_tokens - 1})
    return found


# the name of the place at the end of a piece; demonstrations are counted
_PLACES: dict[str, str] = {"instruction": "instruction", "inputs": "input {}", "answers": "answer {}", "query": "query"}


def piece_segments(tokenizer: Any, pieces: list[Piece]) -> list[Segment]:
    """The segment of each token of the prompt that these pieces make up, as `token_segments` gives it for a batch."""
    return _of_tokens(Encoder(tokenizer), joined(pieces), pieces)


def _of_tokens(encoder: Encoder, text: str, pieces: list[Piece]) -> list[Segment]:
    """The segment of each token of one prompt."""
    part_of: list[Part] = [piece.part for piece in pieces for _ in piece.text]  # of each character
    found: list[Segment] = [_most(text, part_of, begin, end) for begin, end in encoder.spans(text)]
    for at in range(min(max(1, len(encoder.start)), len(found))):
        found[at] = "start"
    return found


def _most(text: str, part_of: list[Part], begin: int, end: int) -> Part:
    """The part of most letters from `begin` to `end`."""
    end = max(end, begin + 1)  # a token without text of its own counts for what follows it
    letters = [at for at in range(begin, min(end, len(text))) if not text[at].isspace()]
    counts: Counter[Part] = Counter(part_of[at] for at in letters or range(begin, min(end, len(text))))
    # of equals, `most_common` gives the one that came first
    return counts.most_common(1)[0][0] if counts else part_of[-1]

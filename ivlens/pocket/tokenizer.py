"""The pocket model's tokenizer: one piece per known word, characters and bytes for everything else.

A Unigram model over Metaspace-split text, in the manner of SentencePiece. Every word of the task bank is one piece
(`▁Paris`), so that prompts are short; unknown words fall back to characters and unknown characters to bytes, so any
text round-trips.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ivlens.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPACE = "▁"
# Pieces that follow a line break and so carry no space mark. The cue is one piece: instruction and input meet there.
LINE_STARTS = ("Input:", "Instruction:", "Output:", "Q:", "A:")
_WORD = re.compile(r"\w+|[^\w\s]")
# Whole words must beat any split of them: one word costs less than two pieces of any kind.
_WORD_SCORE, _CHAR_SCORE = -5.0, -12.0


def bank_words(bank: Mapping[str, Task]) -> list[str]:
    """Every word of the bank with its space mark, in a fixed order; a hyphen or apostrophe splits a word.

    Held-out instructions are left out: their words must come from the rest of the bank to be known.
    """
    words: set[str] = set()
    for task in bank.values():
        texts: list[str] = [*task.instructions, *task.clozes, *task.prose]
        for example in task.examples:
            texts += [example.input, *example.answers]
        for text in texts:
            words.update(_marked_words(text.replace("{x}", " ").replace("{y}", " ")))
    return sorted(words)


def _marked_words(text: str) -> Iterable[str]:
    for match in _WORD.finditer(text):
        before = text[match.start() - 1] if match.start() else " "
        yield (SPACE if before.isspace() else "") + match.group()


def build_tokenizer(bank: Mapping[str, Task], n_ctx: int = 256) -> "PreTrainedTokenizerFast":
    """Build the tokenizer from the bank's words. Deterministic: the same bank gives the same vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    pieces: dict[str, float] = {token: 0.0 for token in (UNK, BOS, EOS, PAD)}
    pieces.update({f"<0x{byte:02X}>": 0.0 for byte in range(256)})
    pieces.update({"\n": _WORD_SCORE, SPACE: _CHAR_SCORE})
    pieces.update(dict.fromkeys(letters, _CHAR_SCORE))
    pieces.update(dict.fromkeys((SPACE + letter for letter in letters), _CHAR_SCORE + 1))
    for word in (*LINE_STARTS, *(SPACE + start for start in LINE_STARTS), *bank_words(bank)):
        pieces[word] = _WORD_SCORE
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement=SPACE, prepend_scheme="first")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, list(pieces).index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=n_ctx,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )

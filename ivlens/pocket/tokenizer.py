"""The pocket model's tokenizer: one piece per known word, characters and bytes for everything else.

It is a Unigram model over text split at blanks, as SentencePiece does it. Every word of the task bank is one piece
(`▁Paris`), so that prompts are short. Unknown words are written in characters and unknown characters in bytes, so that
any text can be encoded and decoded.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ivlens.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPACE = "▁"
# Pieces at the beginning of a line, where no space mark stands before them. The cue has to be one piece, because
# instruction and input meet in this one token.
LINE_STARTS = ("Input:", "Instruction:", "Output:", "Q:", "A:")
_WORD = re.compile(r"\w+|[^\w\s]")
# Log-probabilities of pieces. The split with the largest sum wins, so one word beats any two pieces.
_WORD_SCORE, _CHAR_SCORE = -5.0, -12.0


def bank_words(bank: Mapping[str, Task]) -> list[str]:
    """Every word of the bank with its space mark, sorted; a hyphen or an apostrophe splits a word.

    Held-out instructions give no words: what they say must be known from the rest of the bank.
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
    """The words of a text, each with the space mark if it follows a blank or begins the text."""
    for match in _WORD.finditer(text):
        before = text[match.start() - 1] if match.start() else " "
        yield (SPACE if before.isspace() else "") + match.group()


def build_tokenizer(bank: Mapping[str, Task], n_ctx: int = 256) -> "PreTrainedTokenizerFast":
    """A tokenizer with the bank's words as pieces; the same bank gives the same vocabulary."""
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
        padding_side="left",  # so that all prompts of a batch end in one column
        clean_up_tokenization_spaces=False,
    )

"""Where words, lines and texts end, in text and in the tokens of several kinds of tokenizers."""

import pytest
from conftest import byte_level_tokenizer
from tokenizers import AddedToken

from ivlens.forward.borders import Borders, begins_with, ends_line, goes_on
from ivlens.models import load_model


@pytest.mark.parametrize(
    ("answer", "added", "expected"),
    [
        ("small", "er", True),
        ("small", " dog", False),
        ("small", ".", False),
        ("small", "\n", False),
        ("small", "", False),
        ("small", "2", True),
        ("small", "_", False),
        ("1", "2", True),
        ("1", ".5", False),
        ("1", "\u00b2", True),  # superscript two is a number
        ("New York", "er", True),
        ("don", "'t", False),  # an apostrophe is no letter
        ("don't", "s", True),
        ("caf", "é", True),
        ("café", "s", True),
        ("cafe", "\u0301", True),  # the accent as a mark of its own
        ("cafe\u0301", "s", True),
        ("Straße", "n", True),
        ("мал", "ый", True),
        ("יום", "יים", True),
        ("कम", "ल", True),
        ("한국", "어", True),  # Korean has spaces
        ("小", "さい", False),
        ("小", "猫", False),
        ("小", "\U00020000", False),
        ("さ", "い", False),
        ("カ", "メ", False),
        ("か", "\u3099", True),  # a mark belongs to the character before it, in any script
        ("ก", "า", False),
        ("ก", "\u0e31", True),
        ("ລ", "າ", False),
        ("ខ", "ម", False),
        ("မ", "န", False),
        ("small", "小", False),
        ("小", "small", False),
        ("caf", "\ufffd", True),
        ("caf\ufffd", "s", True),
        ("小", "\ufffd", False),
        ("5%", "3", False),
        ("C++", "x", False),
        ("❤", "\ufe0f", False),
        ("", "x", False),
    ],
)
def test_words_that_go_on(answer, added, expected):
    assert goes_on(answer, added) is expected


@pytest.mark.parametrize(
    ("added", "expected"),
    [("\n", True), (" \t\r\n", True), ("\n\nInput", True), ("\u2028", True), ("", False), (" ", False)]
    + [(" dog\n", False), (".\n", False)],
)
def test_lines_that_end(added, expected):
    assert ends_line(added) is expected


def test_texts_that_begin_with_an_answer():
    for right in (" small\n", "small", "small.", "small dog", "\nsmall</s>"):
        assert begins_with(right, "small") and begins_with(right, " small ")
    for wrong in (" smaller", "smal", "", "a small", "small2"):
        assert not begins_with(wrong, "small")
    assert not begins_with("12", "1") and begins_with("1 2", "1")


def ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def token(tokenizer, piece):
    found = tokenizer.convert_tokens_to_ids(piece)
    assert found is not None and tokenizer.convert_ids_to_tokens(found) == piece
    return found


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("s", (True, False)),
        ("1", (True, False)),
        (".", (False, False)),
        ("Ġ", (False, False)),
        ("Ġhouse", (False, False)),
        ("Ċ", (False, True)),
        ("Ã", (True, False)),  # the first byte of é
        ("<|endoftext|>", (False, True)),
    ],
)
def test_byte_level_tokens(byte_level, piece, expected):
    borders, answer, following = Borders(byte_level), ids(byte_level, " small"), token(byte_level, piece)
    assert (borders.goes_on(answer, following), borders.ends(answer, following)) == expected


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("r", (True, False)),
        ("<0x31>", (True, False)),
        ("<0x2E>", (False, False)),
        ("\u2581", (False, False)),
        ("\u2581house", (False, False)),
        ("<0x0A>", (False, True)),
        ("</s>", (False, True)),
        ("<s>", (False, True)),
        ("<unk>", (False, False)),  # some text, nobody knows which
    ],
)
def test_sentencepiece_tokens(metaspace, piece, expected):
    borders, answer, following = Borders(metaspace), ids(metaspace, " small"), token(metaspace, piece)
    assert (borders.goes_on(answer, following), borders.ends(answer, following)) == expected


def test_bytes_of_one_run(metaspace):
    """This kind of decoder shows every byte of a run as unfinished as long as its last character is."""
    borders = Borders(metaspace)
    accent, ideograph = (tuple(token(metaspace, f"<0x{byte:02X}>") for byte in text.encode()) for text in ("é", "小"))
    first, newline = token(metaspace, "<0xE3>"), token(metaspace, "<0x0A>")
    assert metaspace.decode([*ideograph, first]) == "\ufffd" * 4 and metaspace.decode(ideograph) == "小"
    assert not borders.goes_on(ideograph, first) and not borders.ends(ideograph, first)
    assert borders.goes_on(accent, first) and borders.goes_on(accent[:1], accent[1])
    assert borders.ends(accent, newline) and not borders.goes_on(accent, newline)


def test_words_as_tokens(words):
    borders, answer = Borders(words), ids(words, "small")
    assert not borders.goes_on(answer, token(words, "house")) and borders.ends(answer, token(words, "</s>"))


def test_the_built_in_tokenizer():
    tokenizer = load_model("pocket").tokenizer
    borders, york = Borders(tokenizer), ids(tokenizer, " New York")
    assert len(york) > 2 and borders.goes_on(york[:-1], york[-1])
    assert borders.ends(york, token(tokenizer, "\n")) and not borders.goes_on(york, token(tokenizer, "\u2581small"))


def test_special_tokens_without_a_name():
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|think|>", special=False)])
    borders, answer = Borders(tokenizer), ids(tokenizer, " small")
    assert borders.ends(answer, token(tokenizer, "<|im_end|>"))
    assert not borders.ends(answer, token(tokenizer, "<|think|>"))


def test_no_place_no_text_and_no_tokenizer(byte_level):
    answer, letter = ids(byte_level, " small"), token(byte_level, "s")
    borders = Borders(byte_level)
    assert not borders.goes_on(answer, None) and borders.ends(answer, None)
    assert not borders.goes_on(answer, len(byte_level) + 3) and not borders.ends(answer, len(byte_level) + 3)
    blind = Borders(None)
    assert not blind.goes_on(answer, letter) and not blind.ends(answer, letter) and blind.ends(answer, None)


def test_tokens_beyond_the_tokenizer_are_not_decoded(byte_level):
    """Rows that pad the embedding matrix; tokenizers written in Python raise there."""

    class Strict:
        all_special_ids, added_tokens_decoder = byte_level.all_special_ids, byte_level.added_tokens_decoder

        def __len__(self):
            return len(byte_level)

        def decode(self, tokens, **options):
            assert max(tokens) < len(byte_level)
            return byte_level.decode(tokens, **options)

    borders, answer = Borders(Strict()), ids(byte_level, " small")
    assert not borders.goes_on(answer, len(byte_level)) and borders.goes_on(answer, token(byte_level, "s"))


def test_every_pair_is_decoded_once(byte_level, monkeypatch):
    seen = []
    borders, answer, letter = Borders(byte_level), ids(byte_level, " small"), token(byte_level, "s")
    monkeypatch.setattr(borders, "_text", lambda tokens: seen.append(tokens) or byte_level.decode(list(tokens)))
    assert all(borders.goes_on(answer, letter) and not borders.ends(answer, letter) for _ in range(3))
    assert len(seen) == 2

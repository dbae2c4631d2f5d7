"""Every token has its part of the prompt, whatever template, tokenizer and number of demonstrations.

The texts are written in alphabets of their own (inputs in one, answers in another, ...), so that a token's letters say
which part it belongs to, without any offsets.
"""

from collections import Counter
from dataclasses import replace

import pytest
from conftest import TOKENIZERS, tiny_task
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_chats import CUE, TURNS, tokenizer_with
from tokenizers import processors
from transformers import AutoTokenizer

from ivlens.models import pocket_path
from ivlens.prompts import TASK, PromptRecipe, PromptTemplate, build_prompts
from ivlens.prompts.chats import ChatRefused
from ivlens.prompts.parts import Piece, cut, filled, joined
from ivlens.prompts.rendering import Renderer
from ivlens.prompts.segments import token_segments
from ivlens.prompts.templates import find_template
from ivlens.prompts.tokens import Encoder, token_text
from ivlens.tasks import Task, TaskExample

# none of the Latin letters beyond ASCII, by which byte-level tokenizers write single bytes
ALPHABETS = {
    "instruction": "klmnoгσ漢",
    "inputs": "abcdeжλ日",
    "answers": "fghijфπ語",
    "query": "pqrstюω本",
    "template": "UVWXYZ:;|#=<>",
}
PART_OF = {letter: part for part, letters in ALPHABETS.items() for letter in letters}
TEMPLATES = (
    PromptTemplate("lines", "UV: {instruction}\nWX: {input}\nYZ:", "WX: {input}\nYZ:", "WX: {input}\nYZ: {answer}\n\n"),
    PromptTemplate("bare", "{instruction} {input}=", "{input}=", "{input}={answer};", separator=""),
    PromptTemplate("after", "{input} | {instruction}:", "{input}:", "{answer} <{input}>|{answer}\n"),
    PromptTemplate("braces", "{{{instruction}}} {input}{{", "{input}{{", "{input}{{{answer}}}\n"),
)


def words(part: str) -> st.SearchStrategy[str]:
    """Texts in the alphabet of a part, with spaces inside."""
    letters = st.text(ALPHABETS[part], min_size=1, max_size=6)
    return st.lists(letters, min_size=1, max_size=3).map(" ".join)


LISTS = st.tuples(
    st.lists(words("inputs"), min_size=14, max_size=14, unique=True),
    st.lists(words("answers"), min_size=14, max_size=14, unique=True),
    st.lists(words("query"), min_size=2, max_size=2, unique=True),
    words("instruction"),
)
# no shrinking: cases are small, and shrinking them takes minutes
QUIET = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


def letters_task(lists) -> tuple[Task, list[TaskExample]]:
    """A task in these alphabets, and examples to ask about, which are none of its own."""
    inputs, answers, queries, told = lists
    examples = tuple(TaskExample(x, (y,)) for x, y in zip(inputs, answers, strict=True))
    return Task("letters", examples, instructions=(told,)), [TaskExample(x, (answers[0],)) for x in queries]


def n_told_right(tokenizer, lists, recipe: PromptRecipe, corruption: str | None) -> int:
    """Compare the segments of some prompts with the alphabets of their tokens; returns how many told their part."""
    task, asked = letters_task(lists)
    try:
        batch = build_prompts(tokenizer, task, asked, recipe, corruption=corruption)
    except ValueError as error:  # a split of so few examples may be too small, or a letter not in the vocabulary
        assert "n_shots is" in str(error) or "unknown token" in str(error)
        return 0
    n_start, n_told = max(1, len(Encoder(tokenizer).start)), 0
    for row, segments in enumerate(token_segments(tokenizer, task, recipe, batch)):
        ids = batch.tokens[row][batch.attention_mask[row] == 1].tolist()
        assert len(segments) == len(ids)
        assert segments[:n_start] == ["start"] * n_start and "start" not in segments[n_start:]
        for token, segment in list(zip(ids, segments, strict=True))[n_start:]:
            text = token_text(tokenizer, token)
            counts = Counter(PART_OF[letter] for letter in text if letter in PART_OF).most_common()
            # what has no letters of an alphabet (white space, a part of a character) tells nothing, nor what has equals
            if (
                counts
                and len(text.strip()) == sum(n for _, n in counts)
                and (len(counts) == 1 or counts[0][1] > counts[1][1])
            ):
                assert segment == counts[0][0], (text, segment, batch.texts[row])
                n_told += 1
    return n_told


def check_tokenizer(tokenizer) -> int:
    """Try many prompts; returns how many tokens told their part."""
    n_told = 0

    @QUIET
    @given(
        LISTS, st.sampled_from(TEMPLATES), st.booleans(), st.integers(2, 3), st.sampled_from([None, "shuffle", "drop"])
    )
    def tokens_belong(lists, template, is_told, n_shots, corruption):
        nonlocal n_told
        recipe = PromptRecipe(template, instruction=TASK if is_told else None, n_shots=n_shots)
        n_told += n_told_right(tokenizer, lists, recipe, corruption)

    tokens_belong()
    return n_told


# the third kind of tokenizer knows none of these words, so its tokens tell nothing
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_tokens_belong_to_the_part_of_their_letters(kind):
    assert check_tokenizer(TOKENIZERS[kind]()) > 1000


def test_tokens_of_the_built_in_model_belong_to_the_part_of_their_letters():
    assert check_tokenizer(AutoTokenizer.from_pretrained(pocket_path())) > 500


@pytest.mark.real
def test_tokens_of_a_real_model_belong_to_the_part_of_their_letters(smollm2):
    assert check_tokenizer(smollm2.tokenizer) > 1000


@pytest.mark.real
def test_parts_of_a_real_models_chat_are_found(smollm2):
    template = PromptTemplate(
        "chat", "{instruction} : {input}", "{input}", chat=True, system="klmno", answer_start="XY:"
    )

    @QUIET
    @given(LISTS, st.integers(0, 3))
    def parts_are_found(lists, n_shots):
        task, (asked, _) = letters_task(lists)
        recipe = PromptRecipe(template, n_shots=min(n_shots, len(task.split("fit"))))
        batch = build_prompts(smollm2.tokenizer, task, [asked], recipe)
        render = Renderer(template, smollm2.tokenizer, fused=False)
        pieces = render.pieces(batch.instructions[0], batch.shots[0], asked.input)
        assert joined(pieces) == batch.texts[0]
        said = [piece.text for piece in pieces if piece.part != "template"]
        assert said == ["klmno", *(each for shot in batch.shots[0] for each in shot), task.instructions[0], asked.input]
        assert token_segments(smollm2.tokenizer, task, recipe, batch)[0].count("query")

    parts_are_found()


def test_every_template_of_the_package_is_cut_exactly(any_tokenizer):
    task = tiny_task()
    for name in ("plain", "after", "qa"):
        for recipe in (
            PromptRecipe(name),
            PromptRecipe(name, instruction=None, n_shots=3),
            PromptRecipe(name, n_shots=2),
        ):
            batch = build_prompts(any_tokenizer, task, task.examples[:3], recipe)
            render = Renderer(find_template(name), any_tokenizer, fused=False)
            for row, example in enumerate(batch.examples):
                pieces = render.pieces(batch.instructions[row], batch.shots[row], example.input)
                assert joined(pieces) == batch.texts[row]
                said = [piece for piece in pieces if piece.part != "template"]
                want = [
                    Piece(text, part)
                    for shot in batch.shots[row]
                    for text, part in zip(shot, ("inputs", "answers"), strict=True)
                ]
                told = [Piece(batch.instructions[row], "instruction")] if batch.instructions[row] else []
                asked = [Piece(example.input, "query")]
                assert said == want + (asked + told if name == "after" else told + asked)


def test_a_fused_task_is_its_query():
    tokenizer = TOKENIZERS["byte_level"]()
    task = replace(tiny_task(), fused=True, instructions=())
    recipe = PromptRecipe(n_shots=2)
    batch = build_prompts(tokenizer, task, task.examples[:1], recipe)
    pieces = Renderer(find_template("plain"), tokenizer, fused=True).pieces(
        None, batch.shots[0], task.examples[0].input
    )
    (x, y), (other, more) = batch.shots[0]
    template = "template"
    assert joined(pieces) == batch.texts[0]
    assert pieces == [
        *(x, "inputs"), *(" ", template), *(y, "answers"), *("\n\n", template),
    ] or [tuple(piece) for piece in pieces] == [
        (x, "inputs"), (" ", template), (y, "answers"), ("\n\n", template),
        (other, "inputs"), (" ", template), (more, "answers"), ("\n\n", template), (task.examples[0].input, "query"),
    ]  # fmt: skip
    assert "instruction" not in token_segments(tokenizer, task, recipe, batch)[0]


def test_a_token_across_two_parts_counts_for_most_of_its_letters():
    pieces = [Piece("ab", "inputs"), Piece("cde ", "answers"), Piece("x", "template")]
    assert [piece.part for piece in cut(pieces, 1, 4)] == ["inputs", "answers"]
    assert [piece.text for piece in cut(pieces, 1, 4)] == ["b", "cd"]
    from ivlens.prompts.segments import _most

    text, part_of = joined(pieces), [piece.part for piece in pieces for _ in piece.text]
    assert _most(text, part_of, 1, 4) == "answers"
    assert _most(text, part_of, 1, 3) == "inputs", "of equals the first"
    assert _most(text, part_of, 5, 7) == "template", "white space does not count beside letters"
    assert _most(text, part_of, 5, 6) == "answers", "but it does alone"
    assert _most(text, part_of, 2, 2) == "answers", "a token without text counts for what follows"


def test_filled_is_format_in_pieces():
    template = "a{{ {x}{y} }}b"
    pieces = filled(template, x=Piece("{1}", "inputs"), y=Piece("", "answers"))
    assert joined(pieces) == template.format(x="{1}", y="") and all(piece.text for piece in pieces)


class Slow:
    """A tokenizer without offsets."""

    def __init__(self, fast, **changed):
        self._fast, self.is_fast = fast, False
        self.__dict__ |= changed

    def __getattr__(self, name):
        return getattr(self._fast, name)

    def __call__(self, *args, **options):
        assert "return_offsets_mapping" not in options
        return self._fast(*args, **options)


@pytest.mark.parametrize("text", ["Input: big\nOutput:", " big  日本 é\n", "Instruction", "語", "ß🙂 big"])
def test_without_offsets_tokens_are_placed_by_what_they_decode_to(byte_level, text):
    exact, slow = Encoder(byte_level).spans(text), Encoder(Slow(byte_level)).spans(text)
    assert len(exact) == len(slow)
    for (begin, end), (from_, to) in zip(exact, slow, strict=True):
        # offsets leave out the space before a word
        assert to == end or text[begin:end] == text[from_:to]
        assert from_ == begin or not text[from_:begin].strip()


def test_a_space_that_is_a_token_stands_where_it_is():
    """Offsets of some tokenizers begin behind leading spaces, also of a token that is nothing but one."""
    trimming = TOKENIZERS["byte_level"]()
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = "Input:   big \n"
    spans, slow = Encoder(trimming).spans(text), Encoder(Slow(trimming)).spans(text)
    assert all(end > begin for begin, end in spans) and [end for _, end in spans] == [end for _, end in slow]
    assert [text[begin:end].strip() for begin, end in spans] == [text[begin:end].strip() for begin, end in slow]


def test_offsets_that_leave_out_letters_are_not_believed(byte_level):
    text = "Input: big"
    want = Encoder(Slow(byte_level)).spans(text)

    class Wrong(Slow):
        def __call__(self, *args, **options):
            told = self._fast(*args, **options)
            if options.get("return_offsets_mapping"):
                told["offset_mapping"] = [(begin, begin) for begin, _ in told["offset_mapping"]]
            return told

    wrong = Wrong(byte_level)
    wrong.is_fast = True
    assert Encoder(wrong).spans(text) == want
    unreadable = Slow(byte_level, decode=lambda ids, **_: "?" * len(ids))
    with pytest.raises(ValueError, match="does not show where its tokens stand in 'Input: big', expected offsets"):
        Encoder(unreadable).spans(text)


STRIPPED = TURNS.replace("m.content }}", "m.content | trim }}") + CUE


def test_chat_templates_that_strip_texts_keep_their_places():
    tokenizer = tokenizer_with(STRIPPED)
    template = PromptTemplate("chat", " {instruction} / {input} ", " {input} ", chat=True, separator="")
    render = Renderer(template, tokenizer, fused=False)
    pieces = render.pieces(" Say it. ", ((" big", "small "), ("big", "big")), "big ")
    assert joined(pieces) == render(" Say it. ", ((" big", "small "), ("big", "big")), "big ")[0]
    said = [(piece.text, piece.part) for piece in pieces if piece.part != "template"]
    assert said == [
        ("big", "inputs"), ("small", "answers"), ("big", "inputs"), ("big", "answers"), ("Say it. ", "instruction"),
        ("big", "query"),
    ]  # fmt: skip


def test_a_system_text_is_part_of_the_instruction():
    tokenizer = tokenizer_with(TURNS + CUE)
    template = PromptTemplate(
        "chat", "{instruction} {input}", "{input}", chat=True, system="Be brief.", answer_start="A:"
    )
    task = Task("opposite", (TaskExample("big", ("small",)), TaskExample("hot", ("cold",))), instructions=("Say it.",))
    recipe = PromptRecipe(template)
    batch = build_prompts(tokenizer, task, task.examples[:1], recipe)
    assert batch.texts[0] == "<|system|>Be brief.\n<|user|>Say it. big\n<|assistant|>A:"
    segments = token_segments(tokenizer, task, recipe, batch)[0]  # a token for each letter
    assert segments[0] == "start" and Counter(segments)["instruction"] == len("Be brief.") + len("Say it.")
    assert Counter(segments)["query"] == 3 and segments[-2:] == ["template", "template"]


def test_a_chat_template_that_changes_texts_is_refused():
    changing = TURNS.replace("m.content }}", "m.content | replace('  ', ' ') }}") + CUE
    render = Renderer(find_template("chat"), tokenizer_with(changing), fused=False)
    assert joined(render.pieces("Say it.", (), "big")) == render("Say it.", (), "big")[0]
    with pytest.raises(ChatRefused, match="changes what it is told, so that its place is unknown; use 'plain'"):
        render.pieces("Say  it.", (), "big")


def test_a_batch_of_another_recipe_is_refused(byte_level):
    task = tiny_task()
    batch = build_prompts(byte_level, task, task.examples[:1], PromptRecipe("qa"))
    with pytest.raises(ValueError, match="the prompt of 'big' was not made by this recipe .*build it again"):
        token_segments(byte_level, task, PromptRecipe("plain"), batch)


def test_demonstrations_stay_with_their_rows(byte_level):
    task, recipe = tiny_task(), PromptRecipe(n_shots=2)
    batch = build_prompts(byte_level, task, task.examples[:4], recipe)
    again = build_prompts(byte_level, task, [task.examples[2]], recipe)
    assert batch.rows([2]).shots == again.shots and len(batch.shots) == 4
    wide, source = batch.expanded()
    assert wide.shots == tuple(batch.shots[row] for row in source.tolist())

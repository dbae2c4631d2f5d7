"""Prompts: answer tokens by three kinds of tokenizer, corruptions that change one thing, draws that repeat."""

from dataclasses import replace

import pytest
import torch
from conftest import WORDS, tiny_task
from transformers import PreTrainedTokenizerFast

from ivlens.prompts import CORRUPTIONS, PromptRecipe, PromptTemplate, build_prompts
from ivlens.prompts.templates import TEMPLATES
from ivlens.prompts.tokens import Encoder, token_text
from ivlens.tasks import Task, TaskExample, load_task

TASK = tiny_task()
SYNONYM = tiny_task("synonym", "Name another word.", shift=2)
OTHERS = [TASK, SYNONYM]


def prompt_ids(batch, row):
    return batch.tokens[row][batch.attention_mask[row] == 1].tolist()


def answer_ids(batch, row):
    return [token for token in batch.answer_tokens[row].tolist() if token != -100]


def demonstrated(text):
    """Input and answer of every demonstration in a prompt of the template `plain`."""
    parts = [part.splitlines() for part in text.split("\n\n")[:-1]]
    return [(lines[0].removeprefix("Input: "), lines[1].removeprefix("Output: ")) for lines in parts]


def joint_ids(tokenizer, text):
    """As the tokenizer does it, without what it appends."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


@pytest.mark.parametrize("template", ["plain", "after", "qa"])
@pytest.mark.parametrize("n_shots", [0, 3])
def test_prompt_and_answer_tokens_are_those_of_the_whole_text(any_tokenizer, template, n_shots):
    task = TASK if n_shots == 0 or template != "qa" else tiny_task()
    batch = build_prompts(any_tokenizer, task, task.examples[:6], PromptRecipe(template, n_shots=n_shots))
    for row, example in enumerate(batch.examples):
        whole = joint_ids(any_tokenizer, f"{batch.texts[row]} {example.answer}")
        assert prompt_ids(batch, row) + answer_ids(batch, row) == whole
        assert prompt_ids(batch, row) == joint_ids(any_tokenizer, batch.texts[row])
        assert any_tokenizer.decode(answer_ids(batch, row)).strip() == example.answer
    assert batch.attention_mask[:, -1].all() and (batch.attention_mask.diff(dim=1) >= 0).all()
    assert len(batch) == 6


def test_first_answer_tokens_carry_their_space(byte_level, metaspace, words):
    example = TaskExample("big", ("small",))
    task = Task("t", (example,), instructions=("Do it.",))
    first = {
        name: tokenizer.convert_ids_to_tokens(build_prompts(tokenizer, task, [example]).answer_tokens[0, 0].item())
        for name, tokenizer in (("bpe", byte_level), ("metaspace", metaspace), ("words", words))
    }
    assert first["bpe"].startswith("Ġ") and first["metaspace"] == "▁small" and first["words"] == "small"


def test_answers_of_several_tokens_and_bytes(byte_level, metaspace):
    example = TaskExample("big", ("New York", "é"))
    task = Task("t", (example,), instructions=("Do it.",))
    for tokenizer in (byte_level, metaspace):
        batch = build_prompts(tokenizer, task, [example])
        assert len(answer_ids(batch, 0)) > 1
        assert [tokenizer.decode(list(answer)).strip() for answer in batch.alternatives[0]] == ["New York", "é"]
    assert metaspace.convert_ids_to_tokens(list(batch.alternatives[0][1])) == ["▁", "<0xC3>", "<0xA9>"]


def test_bos_stands_exactly_once_where_the_tokenizer_adds_one(any_tokenizer):
    batch = build_prompts(any_tokenizer, TASK, TASK.examples[:2], PromptRecipe(n_shots=2))
    starts = any_tokenizer("a")["input_ids"][0] == any_tokenizer.bos_token_id
    for row in range(2):
        ids = prompt_ids(batch, row)
        assert ids.count(any_tokenizer.bos_token_id) == int(starts)
        assert (ids[0] == any_tokenizer.bos_token_id) == starts
        assert any_tokenizer.eos_token_id not in (set(ids) | set(answer_ids(batch, row))) - {any_tokenizer.bos_token_id}
    written = Encoder(any_tokenizer).ids(f"{any_tokenizer.bos_token}big" if starts else "big")
    assert written.count(any_tokenizer.bos_token_id) == int(starts)


def test_a_token_across_the_border_belongs_to_the_answer(byte_level, metaspace):
    """A prompt that ends in a space, or an answer that sticks to the cue, would be cut wrongly by counting."""
    open_end = PromptTemplate(
        "open", "{instruction} {input} ->  ", "{input} ->  ", "{input} -> {answer}\n", separator=""
    )
    stuck = PromptTemplate("stuck", "{instruction} {input} sma", "{input} sma", "{input} {answer}\n", separator="")
    for template, answer in ((open_end, "small"), (stuck, "ll")):
        example = TaskExample("big", (answer,))
        task = Task("t", (example,), instructions=("Do it.",))
        for tokenizer in (byte_level, metaspace):
            batch = build_prompts(tokenizer, task, [example], PromptRecipe(template))
            whole = joint_ids(tokenizer, batch.texts[0] + answer)
            ids = prompt_ids(batch, 0)
            assert ids + answer_ids(batch, 0) == whole
            assert ids == joint_ids(tokenizer, batch.texts[0])[: len(ids)]


@pytest.mark.parametrize("template", ["plain", "after", "qa"])
def test_all_variants_end_in_the_same_cue(any_tokenizer, template):
    for corruption in (None, *CORRUPTIONS):
        batch = build_prompts(
            any_tokenizer,
            TASK,
            TASK.examples[:4],
            PromptRecipe(template, n_shots=2),
            corruption=corruption,
            others=OTHERS,
        )
        cue = any_tokenizer(TEMPLATES[template].bare.rpartition("}")[2], add_special_tokens=False)["input_ids"]
        assert (batch.tokens[:, -1] == cue[-1]).all()
        assert torch.equal(batch.answer_tokens, build_prompts(any_tokenizer, TASK, TASK.examples[:4]).answer_tokens)


def test_corruptions_change_one_thing(words):
    examples = TASK.examples[:5]
    recipe = PromptRecipe(n_shots=2)
    clean = build_prompts(words, TASK, examples, recipe)
    drop = build_prompts(words, TASK, examples, recipe, corruption="drop")
    none = build_prompts(words, TASK, examples, recipe, corruption="none")
    other = build_prompts(words, TASK, examples, recipe, corruption="counterfactual", others=OTHERS)
    for row, example in enumerate(examples):
        told = f"Instruction: {clean.instructions[row]}\n"
        assert clean.instructions[row] in TASK.instructions and told in clean.texts[row]
        assert drop.texts[row] == f"Input: {example.input}\nOutput:"
        assert other.instructions[row] in SYNONYM.instructions
        assert demonstrated(other.texts[row]) == [
            (input, SYNONYM.find(input).answer) for input, _ in demonstrated(clean.texts[row])
        ]
        assert other.texts[row].endswith(f"Instruction: {other.instructions[row]}\nInput: {example.input}\nOutput:")
        assert none.texts[row] == clean.texts[row]
    assert (clean.corruptions[0], drop.corruptions[0], none.corruptions[0]) == ("clean", "drop", "none")
    assert drop.instructions == (None,) * 5 and clean.foil_tokens is None
    foils = [words.convert_ids_to_tokens(token) for token in other.foil_tokens.tolist()]
    assert foils == [SYNONYM.find(example.input).answer.split()[0] for example in examples]


def test_shuffle_permutes_the_answers_of_the_same_demonstrations(words):
    examples = TASK.examples[:5]
    clean = build_prompts(words, TASK, examples, PromptRecipe(instruction=None, n_shots=4))
    shuffled = build_prompts(words, TASK, examples, PromptRecipe(n_shots=4), corruption="shuffle")
    assert set(shuffled.instructions) == {None}  # an instruction is taken away too
    assert all(share is not None and share < 1 for share in shuffled.kept_answers)
    for before, after in zip(clean.texts, shuffled.texts, strict=True):
        assert before != after
        before, after = before.splitlines(), after.splitlines()
        assert [line for line in before if "Output" not in line] == [line for line in after if "Output" not in line]
        assert sorted(before) == sorted(after)
        assert all(a != b for a, b in zip(before, after, strict=True) if a.startswith("Output: "))


def test_demonstrations_come_from_the_fit_split_and_never_show_the_query(words):
    fit = {example.input for example in TASK.split("fit", seed=3)}
    for example, text in zip(
        TASK.examples, build_prompts(words, TASK, TASK.examples, PromptRecipe(n_shots=4, seed=3)).texts, strict=True
    ):
        shown = [line.removeprefix("Input: ") for line in text.splitlines() if line.startswith("Input: ")]
        assert shown[-1] == example.input and len(set(shown)) == 5
        assert set(shown[:-1]) <= fit


def test_demonstrations_show_more_than_one_answer_where_there_is_one(words):
    examples = tuple(TaskExample(word, ("red" if n else "blue",)) for n, word in enumerate(WORDS))
    task = Task("mostly", examples)
    rare = (
        next(example.answer for example in task.split("fit") if example.answer == "blue")
        if any(example.answer == "blue" for example in task.split("fit"))
        else None
    )
    if rare is None:
        pytest.skip("the rare answer is not in the fit split")
    for text in build_prompts(words, task, task.examples[1:], PromptRecipe(instruction=None, n_shots=2)).texts:
        assert "Output: blue" in text


def test_draws_repeat_and_do_not_depend_on_the_batch(words):
    options = {"corruption": "counterfactual", "others": OTHERS}
    recipe = PromptRecipe(n_shots=3)
    whole = build_prompts(words, TASK, TASK.examples, recipe, **options)
    again = build_prompts(words, TASK, TASK.examples, recipe, **options)
    alone = build_prompts(words, TASK, TASK.examples[4:5], recipe, **options)
    other_seed = build_prompts(words, TASK, TASK.examples, replace(recipe, seed=1), **options)
    assert whole.texts == again.texts and torch.equal(whole.tokens, again.tokens)
    assert alone.texts[0] == whole.texts[4]
    assert other_seed.texts != whole.texts
    assert {*build_prompts(words, TASK, TASK.examples).instructions} == set(TASK.instructions)


def test_a_counterfactual_that_does_not_exist_is_a_recorded_drop(words):
    same_start = Task(
        "city", (TaskExample("big", ("New France",)), TaskExample("hot", ("red",))), instructions=("City?",)
    )
    task = Task("town", (TaskExample("big", ("New York",)), TaskExample("hot", ("cold",))), instructions=("Town?",))
    batch = build_prompts(words, task, task.examples, corruption="counterfactual", others=[same_start])
    assert batch.corruptions == ("drop", "counterfactual")
    assert batch.instructions == (None, "City?")
    assert batch.foil_tokens.tolist() == [-100, words.convert_tokens_to_ids("red")]


def test_demonstrations_of_another_task_where_it_lacks_these_inputs(words):
    other = Task("colour", tuple(TaskExample(word, ("red",)) for word in WORDS[:9]), instructions=("Colour?",))
    task = replace(TASK, examples=TASK.examples[10:])
    recipe = PromptRecipe(n_shots=2)
    batch = build_prompts(words, task, task.examples[:4], recipe, corruption="counterfactual", others=[other])
    assert set(batch.corruptions) == {"counterfactual_inputs"} and set(batch.foil_tokens.tolist()) == {-100}
    for text, example in zip(batch.texts, batch.examples, strict=True):
        shots = demonstrated(text)
        assert len(shots) == 2 and {answer for _, answer in shots} == {"red"}
        assert {input for input, _ in shots} <= set(WORDS[:9]) - {example.input} and text.count("Colour?") == 1
    alone = replace(recipe, instruction=None)
    batch = build_prompts(words, task, task.examples[:4], alone, corruption="counterfactual_inputs", others=[other])
    assert batch.foil_tokens is None and not any("Colour?" in text for text in batch.texts)


def test_a_counterfactual_answer_is_none_of_the_accepted_ones(words):
    task = Task("town", (TaskExample("big", ("Paris", "red")),), instructions=("Town?",))
    other = Task("colour", (TaskExample("big", ("red",)),), instructions=("Colour?",))
    batch = build_prompts(words, task, task.examples, corruption="counterfactual", others={"colour": other})
    assert batch.corruptions == ("drop",)


def test_the_bank_is_where_counterfactuals_come_from_by_default(byte_level):
    task = load_task("antonym")
    batch = build_prompts(byte_level, task, task.examples[:10], corruption="counterfactual")
    assert set(batch.corruptions) == {"counterfactual"}
    assert not set(batch.instructions) & set(task.instructions)
    assert (batch.foil_tokens != batch.answer_tokens[:, 0]).all()


def test_instructions_may_be_given(words):
    examples = TASK.examples[:8]
    own = PromptRecipe(instruction="Do this.")
    assert set(build_prompts(words, TASK, examples, own).instructions) == {"Do this."}
    several = PromptRecipe(instruction=("A.", "B."))
    assert set(build_prompts(words, TASK, examples, several).instructions) == {
        "A.",
        "B.",
    }
    bare = PromptRecipe(instruction=None, n_shots=0)
    assert build_prompts(words, TASK, examples[:1], bare).texts == (f"Input: {WORDS[0]}\nOutput:",)


def test_a_fused_task_is_asked_as_it_is(words):
    task = Task(
        "fused", (TaskExample("Is it big? Answer:", ("small",)), TaskExample("Is it hot?\n", ("cold",))), fused=True
    )
    batch = build_prompts(words, task, task.examples)
    assert batch.texts == ("Is it big? Answer:", "Is it hot?\n") and batch.instructions == (None, None)
    assert build_prompts(words, task, task.examples, corruption="none").corruptions == ("none", "none")
    with pytest.raises(
        ValueError, match="corruption 'drop' got task 'fused', which has its instruction and input in one"
    ):
        build_prompts(words, task, task.examples, corruption="drop")


def test_braces_in_a_text_stay_as_they_are(byte_level):
    task = Task("code", (TaskExample("{x} {input}", ("{}",)),), instructions=("Give {braces}.",))
    assert build_prompts(byte_level, task, task.examples).texts == (
        "Instruction: Give {braces}.\nInput: {x} {input}\nOutput:",
    )


def chat_tokenizer(words: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    tokenizer.chat_template = template
    return tokenizer


CHAT = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}Instruction: {{ m.content }}\n"
    "{% else %}Output: {{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}Output:{% endif %}"
)


def test_chat_template(words):
    tokenizer = chat_tokenizer(words, CHAT)
    batch = build_prompts(tokenizer, TASK, TASK.examples[:2], PromptRecipe("chat", n_shots=1))
    shown = batch.texts[0].partition("</s>")[0].splitlines()[-1].removeprefix("Output: ")
    assert shown in {example.answer for example in TASK.examples}
    assert batch.texts[0].endswith(f"</s>Instruction: {batch.instructions[0]}\n{WORDS[0]}\nOutput:")
    assert prompt_ids(batch, 0).count(tokenizer.bos_token_id) == 1
    assert answer_ids(batch, 0) == [words.convert_tokens_to_ids(TASK.examples[0].answer)]
    drop = build_prompts(tokenizer, TASK, TASK.examples[:2], PromptRecipe("chat"), corruption="drop")
    assert drop.texts[0] == f"<s>Instruction: {WORDS[0]}\nOutput:"


def test_a_chat_templates_empty_thought_goes_with_the_prompt(words):
    tokenizer = chat_tokenizer(words, CHAT.replace("Output: {{", "Output: no thought\n{{"))
    batch = build_prompts(tokenizer, TASK, TASK.examples[:1], PromptRecipe("chat"))
    assert batch.texts[0].endswith("Output: no thought\n")
    assert answer_ids(batch, 0) == [words.convert_tokens_to_ids(TASK.examples[0].answer)]


SYSTEM_CHAT = CHAT.replace(
    "{% if m.role == 'user' %}",
    "{% if m.role == 'system' %}Give {{ m.content }}\n{% elif m.role == 'user' %}",
)
SPOKEN = PromptTemplate(
    "spoken", "{instruction}\n{input}", "{input}", chat=True, system="the opposite", answer_start="the word:"
)


@pytest.mark.parametrize("corruption", [None, "drop", "shuffle", "counterfactual"])
def test_a_chat_with_a_system_text_and_the_beginning_of_the_answer(words, corruption):
    tokenizer = chat_tokenizer(words, SYSTEM_CHAT)
    recipe = PromptRecipe(SPOKEN, n_shots=2)
    batch = build_prompts(tokenizer, TASK, TASK.examples[:3], recipe, corruption=corruption, others=[SYNONYM])
    for row, text in enumerate(batch.texts):
        assert text.startswith("<s>Give the opposite\nInstruction: ") and text.count("the opposite\n") == 1
        assert text.endswith(f"{batch.examples[row].input}\nOutput: the word:")  # one cue, clean or not
        n_shots = 0 if corruption == "drop" else 2
        assert text.count("Output: the word:") == 1 + n_shots == 1 + text.count("Output: the word: ")
        assert answer_ids(batch, row) == [words.convert_tokens_to_ids(batch.examples[row].answer)]


def test_the_beginning_of_an_answer_comes_after_an_empty_thought(words):
    tokenizer = chat_tokenizer(words, SYSTEM_CHAT.replace("Output: {{", "Output: no thought\n{{"))
    batch = build_prompts(tokenizer, TASK, TASK.examples[:1], PromptRecipe(SPOKEN))
    assert batch.texts[0].endswith("Output: no thought\nthe word:")


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
DEAF = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(("template", "reason"), [(NO_SYSTEM, "no system role"), (DEAF, "it leaves the text out")])
def test_a_chat_template_that_takes_no_system_text(words, template, reason):
    tokenizer = chat_tokenizer(words, template)
    with pytest.raises(ValueError, match=f"template 'spoken' has a system text, .* refuses .*{reason}"):
        build_prompts(tokenizer, TASK, TASK.examples[:1], PromptRecipe(SPOKEN))
    build_prompts(tokenizer, TASK, TASK.examples[:1], PromptRecipe(replace(SPOKEN, system="")))


def test_a_template_without_demonstration(words):
    mine = PromptTemplate("mine", demonstration="")
    build_prompts(words, TASK, TASK.examples[:1], PromptRecipe(mine))
    with pytest.raises(ValueError, match="n_shots is 2, but template 'mine' has no demonstration, expected one with"):
        PromptRecipe(mine, n_shots=2)
    with pytest.raises(ValueError, match="n_shots is 5, but template 'mine' has no demonstration"):
        build_prompts(words, TASK, TASK.examples[:1], PromptRecipe(mine, instruction=None))


def test_rows_expanded_and_to(words):
    task = Task(
        "t", (TaskExample("big", ("New York", "Paris")), TaskExample("hot", ("cold",))), instructions=("A.", "B.")
    )
    batch = build_prompts(words, task, task.examples, corruption="counterfactual", others=[SYNONYM])
    assert batch.rows([1]).examples == task.examples[1:] and len(batch.rows(slice(0, 0))) == 0
    assert torch.equal(batch.rows([1, 0]).tokens, batch.tokens.flip(0))
    assert batch.rows(slice(1, 2)).foil_tokens.tolist() == batch.foil_tokens.tolist()[1:]
    wide, source = batch.expanded()
    assert source.tolist() == [0, 0, 1] and wide.texts == (batch.texts[0], batch.texts[0], batch.texts[1])
    assert [words.decode(answer_ids(wide, row)) for row in range(3)] == ["New York", "Paris", "cold"]
    assert batch.to("cpu").tokens.device.type == "cpu" and batch.to("meta").foil_tokens.device.type == "meta"


def test_tokens_as_they_read_in_a_text(byte_level, metaspace, words):
    assert token_text(byte_level, byte_level("a big", add_special_tokens=False)["input_ids"][1]) == " big"
    assert token_text(metaspace, metaspace.convert_tokens_to_ids("▁small")) == " small"
    assert token_text(metaspace, metaspace.convert_tokens_to_ids("<0xC3>")) == "<0xC3>"
    assert token_text(words, words.convert_tokens_to_ids("small")) == "small"
    assert token_text(words, 2) == "</s>"
    assert token_text(words, 5000) == "<5000>"
    lone_byte = byte_level("é", add_special_tokens=False)["input_ids"][0]
    assert token_text(byte_level, lone_byte) == "Ã"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "noise"}, "corruption is 'noise', expected one of counterfactual, counterfactual_inputs"),
        (
            {"n_shots": 200},
            "n_shots is 200, but task .* has ([0-9]+) examples to demonstrate .* at most n_shots = [0-9]+",
        ),
        ({"corruption": "shuffle"}, "'shuffle' got n_shots = 0, expected 2 or more .* more examples"),
        (
            {"corruption": "drop", "instruction": None, "n_shots": 0},
            "neither an instruction nor demonstrations, expected something to take away",
        ),
        ({"corruption": "counterfactual_inputs"}, "got no demonstrations, expected some whose inputs are replaced"),
        ({"template": "chat"}, "got a tokenizer without a chat template"),
    ],
)
def test_requests_that_cannot_be_met(words, options, message):
    with pytest.raises(ValueError, match=message):
        corruption = options.pop("corruption", None)
        build_prompts(words, TASK, TASK.examples[:2], PromptRecipe(**options), corruption=corruption)


def test_unusable_examples_and_tokenizers(words, byte_level):
    with pytest.raises(ValueError, match="no examples of task 'antonym'"):
        build_prompts(words, TASK, [])
    with pytest.raises(
        TypeError, match=r"tokenizer is NoneType, expected a transformers tokenizer; pass model\.tokenizer"
    ):
        build_prompts(None, TASK, TASK.examples)
    unknown = Task("t", (TaskExample("big", ("zebra",)),), instructions=("A.",))
    with pytest.raises(ValueError, match="task 't': 1 of 1 examples have an answer .* unknown token .first: 'zebra'."):
        build_prompts(words, unknown, unknown.examples)
    with pytest.raises(ValueError, match="answer '' adds no token to the prompt"):
        Encoder(words).split("big", [""])
    with pytest.raises(ValueError, match="prompt 'In' has no token before its answer"):
        Encoder(byte_level).split("In", ["put"])
    same = Task("same", tuple(TaskExample(word, ("red",)) for word in WORDS))
    with pytest.raises(ValueError, match="all demonstrations have the answer 'red', so shuffling changes nothing"):
        build_prompts(words, same, same.examples, PromptRecipe(n_shots=3), corruption="shuffle")


def test_an_unknown_answer_is_left_out_and_reported_once(words, caplog):
    answers = {"big": ("zebra", "small"), "hot": ("cold",), "sad": ("gnu",)}
    examples = tuple(TaskExample(*pair) for pair in answers.items())
    task = Task("t", examples, instructions=("A.",))
    batch = build_prompts(words, task, examples, corruption="counterfactual", others=[SYNONYM])
    assert batch.examples == examples[1:2] and len(batch.tokens) == len(batch.foil_tokens) == 1
    (line,) = caplog.messages
    assert line.startswith("task 't': 2 of 3 examples") and "'zebra'" in line


def test_counterfactuals_come_from_tasks_of_the_training_where_the_task_is_one(words, monkeypatch):
    trained = [tiny_task(f"in {n}", f"Do {n}.", shift=n + 2, in_training=True) for n in range(2)]
    untrained = [tiny_task(f"out {n}", f"Make {n}.", shift=n + 5) for n in range(6)]
    bank = {task.name: task for task in (*trained, *untrained)}
    monkeypatch.setattr("ivlens.prompts.build.load_bank", lambda: bank)
    own = tiny_task(in_training=True)

    def used(task, others=None):
        made = build_prompts(words, task, task.examples, corruption="counterfactual", others=others)
        for instruction, name in zip(made.instructions, made.counterfactuals, strict=True):
            assert instruction in bank[name].instructions
        assert made.rows([2, 0]).counterfactuals == (made.counterfactuals[2], made.counterfactuals[0])
        return set(made.counterfactuals)

    assert used(own) == {"in 0", "in 1"}
    assert used(own, untrained) <= {task.name for task in untrained}
    assert len(used(tiny_task())) > 2 and len(used(own, bank)) > 2
    del bank["in 0"], bank["in 1"]
    assert used(own) <= set(bank)
    assert set(build_prompts(words, own, own.examples).counterfactuals) == {None}


def test_an_unknown_alternative_is_left_out(words):
    task = Task("t", (TaskExample("big", ("small", "zebra")),), instructions=("A.",))
    assert len(build_prompts(words, task, task.examples).alternatives[0]) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"instructed": "{input}\nOutput:"},
            r"instructed is .* with fields \['input'\], expected \['input', 'instruction'\]",
        ),
        ({"bare": "Output:"}, r"bare is 'Output:' with fields \[\], expected \['input'\]"),
        ({"bare": "Input: {input}\nAnswer:"}, "ends in .*Output:' with an instruction and in .*Answer:' without"),
        ({"demonstration": "{input}"}, "demonstration is '{input}' with fields"),
        ({"system": "Be brief."}, "system is 'Be brief.' without chat, expected chat=True beside it"),
        ({"answer_start": "Answer:"}, "answer_start is 'Answer:' without chat, expected chat=True beside it"),
        ({"system": "{input}", "chat": True}, r"system is '{input}' with fields \['input'\], expected \[\]"),
    ],
)
def test_templates_that_would_mislead(fields, message):
    with pytest.raises(ValueError, match=message):
        PromptTemplate("mine", **fields)


class _Panics:
    """A tokenizer whose library ends in a panic, as one in Rust does where a pattern takes too long."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def convert_ids_to_tokens(self, ids):
        return self._tokenizer.convert_ids_to_tokens(ids)

    def __call__(self, text, **options):
        if "boom" in text:
            raise type("PanicException", (BaseException,), {})("Onig: retry-limit-in-match over")
        return self._tokenizer(text, **options)


def test_texts_that_no_tokenizer_reads_are_one_error(byte_level):
    with pytest.raises(ValueError, match="is no whole text"):
        Encoder(byte_level).ids("half of \ud800")
    with pytest.raises(ValueError, match="the tokenizer fails on .*boom.*retry-limit"):
        Encoder(_Panics(byte_level)).ids("boom")

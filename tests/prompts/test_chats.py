"""What people's chat templates do: each is used right, or refused by name."""

import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ivlens.prompts.build import build_prompts
from ivlens.prompts.chats import Chat, ChatRefused
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.templates import PromptTemplate
from ivlens.tasks.task import Task, TaskExample

DAY = "2024-07-26"
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
CUE = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PARTS = "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}\n{% endfor %}"
TASK = Task("opposite", (TaskExample("big", ("small",)), TaskExample("hot", ("cold",))), instructions=("Say it.",))


def tokenizer_with(template, begins_with_bos=False) -> PreTrainedTokenizerFast:
    letters = ["<unk>", "<s>", "</s>", *map(chr, range(32, 127))]
    raw = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(letters)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if begins_with_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made


def chat(template) -> Chat:
    return Chat("chat", tokenizer_with(template), DAY)


def prompt(template) -> str:
    return chat(template)([("user", "big")])


def thinking(opened: str) -> str:
    return TURNS + CUE.replace("<|assistant|>", f"<|assistant|>{opened}")


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),
        ("<think>", "<think>\n\n</think>\n\n"),
        ("[THINK]", "[THINK]\n\n[/THINK]\n\n"),
        ("<seed:think>", "<seed:think>\n\n</seed:think>\n\n"),
        ("◁think▷", "◁think▷\n\n◁/think▷\n\n"),
        ("<thought>\n", "<thought>\n\n</thought>\n\n"),
    ],
)
def test_a_thought_that_the_cue_opens_is_closed(opened, closed):
    assert prompt(thinking(opened)) == f"<|user|>big\n<|assistant|>{closed}"
    within = TURNS.replace(
        "{{ m.content }}", f"{{% if m.role == 'assistant' %}}{opened}{{% endif %}}{{{{ m.content }}}}"
    )
    assert prompt(within + thinking(opened).removeprefix(TURNS)) == f"<|user|>big\n<|assistant|>{closed}"


def test_a_template_that_can_leave_thoughts_out_does():
    optional = TURNS + CUE.replace(
        "<|assistant|>",
        "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
    )
    assert prompt(optional) == "<|user|>big\n<|assistant|><think>\n\n</think>\n\n"


def test_what_stands_between_cue_and_answer_goes_with_the_prompt_where_it_is_no_blank():
    final = TURNS.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<|final|>{% endif %}{{ m.content }}") + CUE
    assert prompt(final) == "<|user|>big\n<|assistant|><|final|>" and not chat(final).gap
    spaced = TURNS.replace("{{ m.content }}", " {{ m.content }}") + CUE
    assert prompt(spaced) == "<|user|> big\n<|assistant|>" and chat(spaced).gap == " "


@pytest.mark.parametrize(
    ("format", "told"),
    [("%d %b %Y", "26 Jul 2024"), ("%A, %-d %B %Y, %H:%M", "Friday, 26 July 2024, 00:00"), ("%Y-%m-%d", DAY)],
)
def test_it_is_the_same_day_in_every_prompt(format, told):
    asks = f"{{{{ strftime_now('{format}') }}}}\n" + TURNS + CUE
    if_defined = (
        f"{{% if strftime_now is defined %}}{{% set day = strftime_now('{format}') %}}{{% endif %}}{{{{ day }}}}\n"
    )
    for template in (asks, if_defined + TURNS + CUE):
        assert prompt(template) == f"{told}\n<|user|>big\n<|assistant|>"
    other = Chat("chat", tokenizer_with(asks), "1999-01-02")
    assert other([("user", "big")]).startswith(
        "Saturday, 2 January" if "%A" in format else ("02 Jan 1999", "1999-01-02")
    )


def test_the_day_is_recorded():
    recorded = PromptRecipe("chat").to_dict()
    assert recorded["template"]["date"] == DAY and PromptRecipe.from_dict(recorded) == PromptRecipe("chat")
    with pytest.raises(ValueError, match="template 'mine': date is 'today', expected a day as '2024-07-26'"):
        PromptTemplate("mine", date="today")


def test_templates_that_take_lists_of_parts_get_them():
    assert prompt(PARTS + CUE) == "<|user|>big\n<|assistant|>".replace("big\n", "big")
    typed = PARTS.replace("m.content %}", "m.content if part.type == 'text' %}")
    assert chat(typed + CUE)([("user", "a"), ("assistant", "b"), ("user", "c")]).count("<|user|>") == 2
    # the user's turns only: others are added to a text, or written as they are
    for other in ("{{ m.content + '' }}", "{{ m.content }}"):
        either = "{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}" + other + "{% endif %}"
        mixed = TURNS.replace("{{ m.content }}", either) + CUE
        assert prompt(mixed) == "<|user|>big<|assistant|>" and not chat(mixed).gap


LOSES_USER = "{% for m in messages %}<|{{ m.role }}|>\n{% endfor %}" + CUE
ONLY_USER = "{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}\n{% endfor %}" + CUE
NO_END = TURNS.replace("{{ m", "{% if m.role == 'assistant' %}{{ raise_exception('ask me') }}{% endif %}{{ m") + CUE
LAST_ONLY = TURNS.replace("in messages", "in messages[-2:]") + CUE
NO_SECOND = "{% if messages|length > 2 %}{{ raise_exception('one question') }}{% endif %}" + TURNS + CUE


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "got a tokenizer without a chat template"),
        (LOSES_USER, "cannot be used (it leaves out what the user says)"),
        (ONLY_USER, "leaves out what the assistant says"),
        (NO_END, "cannot write an answer (ask me)"),
        ("{{ raise_exception('never') }}", "cannot be used (never)"),
        ("{% for %}", "cannot be used (Expected an expression"),
        ("{{ nobody.knows.it }}" + TURNS, "cannot be used ('nobody' is undefined)"),
        ("{{ range(100)|random }}" + TURNS + CUE, "writes different texts for the same chat"),
        (thinking("Well, "), "ends its cue with a text that it leaves out before a given answer ('Well, ')"),
        ({"tool_use": TURNS}, "cannot be used (This model has multiple chat templates"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(template, reason):
    with pytest.raises(
        ChatRefused, match=f"template 'chat'.*{re.escape(reason)}.*; use 'plain', 'after' or 'qa'"
    ) as refused:
        chat(template)
    assert len(str(refused.value)) <= 160 + 10


@pytest.mark.parametrize(("template", "reason"), [(LAST_ONLY, "leaves one of them out"), (NO_SECOND, "one question")])
def test_a_template_without_turns_has_no_demonstrations(template, reason):
    one = chat(template)
    assert one([("user", "big")]) == "<|user|>big\n<|assistant|>"
    with pytest.raises(ChatRefused, match=f"cannot write demonstrations as turns .*{reason}.*; use n_shots = 0"):
        one([("user", "big"), ("assistant", "small"), ("user", "hot")])


@pytest.mark.parametrize("writes_bos", [True, False])
def test_a_text_begins_once(writes_bos):
    tokenizer = tokenizer_with(("<s>" if writes_bos else "") + TURNS + CUE, begins_with_bos=True)
    batch = build_prompts(tokenizer, TASK, TASK.examples[:1], PromptRecipe("chat"))
    assert batch.tokens[0].tolist().count(1) == 1 and batch.tokens[0, 0] == 1


RAISES = {"raises": "raise_exception('no')", "divides": "1 / 0", "lacks": "x.y.z", "adds": "'a' + 1", "calls": "f()"}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", RAISES)
def test_a_template_that_raises_is_named_also_where_it_does_so_later(how: str, late: bool):
    """Templates are tried with markers; one that raises only at what is really said is refused in the same words."""
    from conftest import byte_level_tokenizer

    said = "{{ messages[0].content }}{% if messages|length > 1 %} A: {{ messages[1].content }}{% endif %}"
    fault = "{% macro f() %}{{ f() }}{% endmacro %}{{ " + RAISES[how] + " }}"
    only = f"{{% if 'first question' not in messages[0].content %}}{fault}{{% endif %}}" if late else fault
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = f"{only}{said}{{% if add_generation_prompt %}} A:{{% endif %}}"
    with pytest.raises(ChatRefused, match=r"template 'mine': this tokenizer's chat template cannot .*use 'plain'"):
        Chat("mine", tokenizer, "2024-07-26")([("user", "big")])

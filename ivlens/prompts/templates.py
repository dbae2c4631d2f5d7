"""How instruction, demonstrations and input become one text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import Formatter
from typing import Any


@dataclass(frozen=True)
class PromptTemplate:
    """Texts with `{instruction}`, `{input}` and `{answer}`; `{{` and `}}` for braces that stay.

    Attributes:
        name: Short name.
        instructed: A prompt with its instruction.
        bare: The same prompt without one. Both end in the same cue, so the last prompt token is the same.
        demonstration: An answered example, as it stands before the prompt; empty: the template has none. In a chat,
            demonstrations are turns of their own.
        separator: What stands between the cue and the answer; of a chat without `answer_start` the tokenizer's
            template decides.
        chat: `instructed` and `bare` are what the user says; the tokenizer's chat template does the rest.
        system: What a chat says before the first turn, with and without an instruction; empty: nothing, or what the
            tokenizer's template says by default.
        answer_start: How every answer of a chat begins, those of demonstrations too ("Answer:"). It is the end of the
            prompt, so that the model goes on from there; `separator` follows it.

    Raises:
        ValueError: a text without its fields or with others, two cues, or a system text or an answer's beginning
            where there is no chat.
    """

    name: str
    instructed: str = "Instruction: {instruction}\nInput: {input}\nOutput:"
    bare: str = "Input: {input}\nOutput:"
    demonstration: str = "Input: {input}\nOutput: {answer}\n\n"
    separator: str = " "
    chat: bool = False
    system: str = ""
    answer_start: str = ""

    def __post_init__(self) -> None:
        wanted = {"instructed": {"instruction", "input"}, "bare": {"input"}, "system": set(), "answer_start": set()}
        if not self.chat and self.demonstration:
            wanted["demonstration"] = {"input", "answer"}
        for part, names in wanted.items():
            text = getattr(self, part)
            found = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
            if found != names:
                raise ValueError(
                    f"template {self.name!r}: {part} is {text!r} with fields {sorted(found)}, expected {sorted(names)}."
                )
        for part in ("system", "answer_start"):
            if getattr(self, part) and not self.chat:
                raise ValueError(
                    f"template {self.name!r}: {part} is {getattr(self, part)!r:.60} without chat, expected chat=True "
                    "beside it: only chat templates have these; add it, or put the text into instructed and bare."
                )
        if _cue(self.instructed) != _cue(self.bare):
            raise ValueError(
                f"template {self.name!r} ends in {_cue(self.instructed)!r} with an instruction and in "
                f"{_cue(self.bare)!r} without, expected the same cue; effects are measured at its last token."
            )

    @property
    def demonstrates(self) -> bool:
        """Whether prompts can have demonstrations."""
        return self.chat or bool(self.demonstration)


def _cue(text: str) -> str:
    return text.rpartition("}")[2]


TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("plain"),
        PromptTemplate("after", instructed="Input: {input}\nInstruction: {instruction}\nOutput:"),
        PromptTemplate(
            "qa",
            instructed="Q: {instruction}\n{input}\nA:",
            bare="Q: {input}\nA:",
            demonstration="Q: {input}\nA: {answer}\n\n",
        ),
        PromptTemplate("chat", instructed="{instruction}\n{input}", bare="{input}", separator="", chat=True),
    )
}


_LARGEST_FILE = 2**20


def find_template(template: str | PromptTemplate) -> PromptTemplate:
    """A template by name, from a JSON file, or as it is.

    A built-in name is that template, whatever lies in the working directory; a file's name ends in `.json`.

    Raises:
        ValueError: no template has that name, or the file holds none.
        FileNotFoundError: there is no such file.
    """
    if isinstance(template, PromptTemplate):
        return template
    if isinstance(template, str) and template in TEMPLATES:
        return TEMPLATES[template]
    if isinstance(template, str) and template.lower().endswith(".json"):
        return _read_template(Path(template).expanduser())
    raise ValueError(
        f"template is {template!r:.80}, expected one of {', '.join(TEMPLATES)}, a JSON file with the fields of a "
        "PromptTemplate, or a PromptTemplate."
    )


def _read_template(path: Path) -> PromptTemplate:
    """A template from a file that holds one JSON object; its name is the file's where it has none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"template file {str(path)!r:.200} does not exist, expected a JSON file; check the path."
        )
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(
            f"template file {str(path)!r:.200} is larger than 1 MB, expected a few lines of JSON; check it."
        )
    known = {field.name: field.type for field in fields(PromptTemplate)}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not values.keys() <= known.keys():
            raise ValueError(f"it has {list(values)!r:.80}")
        wrong = [name for name, value in values.items() if not isinstance(value, bool if name == "chat" else str)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {values[wrong[0]]!r:.40}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"template {str(path)!r:.200} holds no template ({error}), expected one JSON object with some of "
            f"{', '.join(known)}; correct it."
        ) from None
    return PromptTemplate(**{"name": path.stem, **values})


class Renderer:
    """Calls give the prompt and what separates it from its answer."""

    def __init__(self, template: PromptTemplate, tokenizer: Any, *, fused: bool) -> None:
        self.template, self.tokenizer, self.fused = template, tokenizer, fused
        self._suffix, self._separator = self._chat_gap() if template.chat else ("", template.separator)

    def __call__(self, instruction: str | None, shots: Sequence[tuple[str, str]], input: str) -> tuple[str, str]:
        if self.template.chat:
            return self._chat([*self._turns(shots), _said("user", self._query(instruction, input))]), self._separator
        if self.fused:
            separator = "" if input[-1:].isspace() else self._separator
            return "".join(f"{x}{separator}{y}\n\n" for x, y in shots) + input, separator
        demonstrations = [self.template.demonstration.format(input=x, answer=y) for x, y in shots]
        return "".join(demonstrations) + self._query(instruction, input), self._separator

    def _query(self, instruction: str | None, input: str) -> str:
        if self.fused:
            return input
        if instruction:
            return self.template.instructed.format(instruction=instruction, input=input)
        return self.template.bare.format(input=input)

    def _turns(self, shots: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        start = self.template.answer_start.format()
        before = start and start + self.template.separator
        return [turn for x, y in shots for turn in (_said("user", x), _said("assistant", before + y))]

    def _chat(self, turns: list[dict[str, str]]) -> str:
        return self._rendered([*self._system, *turns], add_generation_prompt=True) + self._suffix

    def _rendered(self, turns: list[dict[str, str]], **options: bool) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)

    def _chat_gap(self) -> tuple[str, str]:
        """What ends the prompt after the chat template's cue, and what separates it from its answer.

        An empty thought that the template writes between its cue and an answer goes with the prompt.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"template {self.template.name!r} got a tokenizer without a chat template; use 'plain', 'after' or "
                "'qa'."
            )
        self._suffix, self._system = "", self._system_turn()
        asked, answer = [_said("user", "question")], "<answer>"
        cue = self._chat(asked)
        whole = self._rendered([*self._system, *asked, _said("assistant", answer)])
        gap = whole.removeprefix(cue).partition(answer)[0] if whole.startswith(cue) else ""
        if start := self.template.answer_start.format():
            return gap + start, self.template.separator
        return ("", gap) if not gap.strip() else (gap, "")

    def _system_turn(self) -> list[dict[str, str]]:
        """The system text as a turn, if there is one and the tokenizer's chat template takes it."""
        text = self.template.system.format()
        if not text:
            return []
        turns = [_said("system", text), _said("user", "question")]
        try:
            shown = self._rendered(turns)
        except Exception as error:  # whatever the template raises, and its language for what it cannot do
            reason = " ".join(str(error).split()) or type(error).__name__
        else:
            reason = "" if text.strip() in shown else "it leaves the text out"
        if reason:
            raise ValueError(
                f"template {self.template.name!r} has a system text, which this tokenizer's chat template refuses "
                f"({reason:.120}); put the text into instructed and bare, or leave it out."
            )
        return turns[:1]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

"""Templates of prompts: how instruction, demonstrations and input become one text."""

from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from string import Formatter

from ivlens.common.arguments import checked
from ivlens.common.foreign import foreign_json
from ivlens.common.names import expanded, set_shown

_LONGEST, _MOST_FIELDS = 2**16, 16  # letters and fields of one text: many fields would repeat a long input many times


@checked
@dataclass(frozen=True)
class PromptTemplate:
    """The form of a prompt: texts with the fields `{instruction}`, `{input}` and `{answer}`.

    `{{` and `}}` stand for braces in the prompt itself.

    Attributes:
        name: A short name.
        instructed: The prompt with an instruction.
        bare: The prompt without one. Both end in the same cue, so their last prompt token is the same.
        demonstration: An answered example, as it stands before the prompt; empty: the template has no demonstrations.
            In a chat, demonstrations are turns of their own, and this text is not used.
        separator: The text between the cue and the answer. In a chat without `answer_start`, the tokenizer's chat
            template decides instead.
        chat: Whether `instructed` and `bare` are what the user says, and the tokenizer's chat template writes the rest.
        system: The system text of a chat, the same with and without an instruction. Empty: none, or the one that the
            tokenizer's chat template writes by default.
        answer_start: The beginning of every answer in a chat, also in demonstrations ("Answer:"). The prompt ends with
            it, and the model goes on from there; `separator` follows it.
        date: The date that chat templates get as today's date, so that prompts are the same every day.

    Raises:
        ValueError: a text that lacks one of its fields or has others, two different cues, a system text or
            `answer_start` without `chat`, or a date that is no date.

    Source: docs/method.md, 2 Prompts and corruptions.
    """

    name: str
    instructed: str = "Instruction: {instruction}\nInput: {input}\nOutput:"
    bare: str = "Input: {input}\nOutput:"
    demonstration: str = "Input: {input}\nOutput: {answer}\n\n"
    separator: str = " "
    chat: bool = False
    system: str = ""
    answer_start: str = ""
    date: str = "2024-07-26"

    def __post_init__(self) -> None:
        set_shown(self, "name")
        wanted = {"instructed": {"instruction", "input"}, "bare": {"input"}, "system": set(), "answer_start": set()}
        if not self.chat and self.demonstration:  # a chat does not use the text
            wanted["demonstration"] = {"input", "answer"}
        for part, names in wanted.items():
            text = getattr(self, part)
            # (name, format, conversion) of every field; `{input:>9}` and `{input!r}`, for example, are refused below
            fields_of = [(name, spec, kind) for _, name, spec, kind in Formatter().parse(text) if name is not None]
            found = {name for name, _, _ in fields_of}
            if found != names:
                raise ValueError(
                    f"template {self.name!r:.60}: {part} is {text!r:.60} with fields {sorted(found)!r:.60}, expected "
                    f"{sorted(names)}."
                )
            if (
                len(text) > _LONGEST
                or len(fields_of) > _MOST_FIELDS
                or any(spec or kind for _, spec, kind in fields_of)
            ):
                raise ValueError(
                    f"template {self.name!r:.80}: {part} has {len(fields_of)} fields in {len(text):,} letters, or one "
                    f"with a format, expected up to {_MOST_FIELDS} plain fields in {_LONGEST:,}; write {{input}}."
                )
        for part in ("system", "answer_start"):
            if getattr(self, part) and not self.chat:
                raise ValueError(
                    f"template {self.name!r}: {part} is {getattr(self, part)!r:.60} without chat, expected chat=True "
                    "beside it: only chat templates have these; add it, or put the text into instructed and bare."
                )
        try:
            date.fromisoformat(self.date)
        except (TypeError, ValueError):
            raise ValueError(
                f"template {self.name!r}: date is {self.date!r:.40}, expected a day as '2024-07-26'."
            ) from None
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
    """The end of a prompt, after its last field."""
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

_LARGEST_FILE = 2**20  # bytes


def find_template(template: str | PromptTemplate) -> PromptTemplate:
    """The template that a name or the path of a JSON file stands for; a `PromptTemplate` is returned as it is.

    A built-in name always means that template, whatever files are in the working directory. The name of a file ends in
    `.json`.

    Raises:
        ValueError: no template has that name, or the file holds none.
        FileNotFoundError: there is no such file.
    """
    if isinstance(template, PromptTemplate):
        return template
    if isinstance(template, str) and template in TEMPLATES:
        return TEMPLATES[template]
    if isinstance(template, str) and template.lower().endswith(".json"):
        return _read_template(expanded(template))
    raise ValueError(
        f"template is {template!r:.80}, expected one of {', '.join(TEMPLATES)}, a JSON file with the fields of a "
        "PromptTemplate, or a PromptTemplate."
    )


def _read_template(path: Path) -> PromptTemplate:
    """Read a template from a file with one JSON object; the file's name is the template's if the object has none."""
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
        values = foreign_json(path, _LARGEST_FILE)
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

"""The commands on a tiny random GPT-2 with a tokenizer made here, and a task file in the function-vectors format."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, hf_model
from pickles import assert_no_pickle

import ivlens.forward.remembered
import ivlens.show.demo.run
from ivlens.cli.main import COMMANDS, main
from ivlens.prompts import PromptRecipe
from ivlens.show.demo.run import run_demo
from ivlens.vectors import InstructionVector

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, byte_level) -> Path:
    """Two checkpoints of one shape (gpt2, other) and one of another (llama); task files next.json and second.json."""
    folder = tmp_path_factory.mktemp("cli")
    for name, family, seed in (("gpt2", "gpt2", 0), ("other", "gpt2", 1), ("llama", "llama", 0)):
        hf_model(family, seed=seed, n_ctx=512).save_pretrained(folder / name)
        byte_level.save_pretrained(folder / name)
    for name, shift in (("next", 1), ("second", 2)):
        pairs = [{"input": word, "output": WORDS[(n + shift) % len(WORDS)]} for n, word in enumerate(WORDS)]
        (folder / f"{name}.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture(scope="module")
def vector_file(place: Path) -> Path:
    path = place / "vector.safetensors"
    assert main(vector_command(place, "--out", path)) == 0
    return path


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], int]]:
    """No form is looked for: every search that would be made, by its tasks and seed, finds the default recipe."""
    searches: list[tuple[tuple[str, ...], int]] = []

    def found(model: Any, tasks: Any, *, seed: int = 0) -> PromptRecipe:
        searches.append((tuple(task.name for task in tasks), seed))
        return PromptRecipe(seed=seed)

    for module in (ivlens.forward.remembered, ivlens.show.demo.run):
        monkeypatch.setattr(module, "auto_recipe", found)
    return searches


def common(place: Path) -> list[str]:
    return ["--model", str(place / "gpt2"), "--task", str(place / "next.json"), "--n-prompts", "2"]


def vector_command(place: Path, *more: object) -> list[str]:
    return ["vector", *common(place), "--k", "3", *map(str, more)]


DOUBTS = ("no vector can carry", "heads are chosen by effects that say little")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Status, stdout, and stderr without what is said of any model with random weights: that it can do nothing."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    lines = err.splitlines(keepends=True)
    return status, out, "".join(line for line in lines if not any(doubt in line for doubt in DOUBTS))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on stderr of a command that must end with status 2."""
    status, out, err = run(capsys, *words)
    lines = [line for line in err.splitlines() if line.strip()]
    assert (status, out, len(lines)) == (2, "", 1), err
    assert lines[0].startswith("ivlens: ")
    return lines[0]


@pytest.mark.parametrize("command", ["demo", "prompts", "effects", "vector", "evaluate", "steer"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and f"ivlens {command} " in out and "Example" in out and "--model" in out and "--json" in out
    assert command in COMMANDS


def test_effects_prints_the_strongest_heads(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "effects", *common(place), "--top", 4)
    assert status == 0 and err == ""
    assert "2 corrupted prompts (shuffle)" in out
    assert "descriptive" in out and "AIE on select" in out and "prompts that did not choose the heads" in out
    assert sum(line.startswith("L") for line in out.splitlines()) == 4
    status, out, _ = run(capsys, "effects", *common(place), "--again", 0)
    assert status == 0 and "select  " not in out
    status, _, err = run(capsys, "effects", *common(place), "--again", -1)
    assert status != 0 and "--again is -1, expected 0 or more" in err


def test_effects_json_is_one_object(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "effects", *common(place), "--score", "logprob", "--json")
    facts = json.loads(out)
    assert status == 0 and err == ""
    assert facts["task"] == "next" and facts["model"]["architecture"] == "GPT2LMHeadModel"
    assert len(facts["heads"]) == 3 * 4 and facts["heads"][0]["aie"] >= facts["heads"][-1]["aie"]


@pytest.mark.parametrize("suffix", [".safetensors", ".csv", ".parquet", ".html"])
def test_effects_writes_what_the_suffix_says(
    place: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / f"effects{suffix}"
    status, out, _ = run(capsys, "effects", *common(place), "--out", path)
    assert status == 0 and str(path) in out
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_effects_without_a_browser_are_kept_as_a_page(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/bin/false")
    out = place / "unseen.png"
    assert main(["effects", "--task", "antonym", "--n-prompts", "4", "--again", "0", "--out", str(out), "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["out"] == str(out.with_suffix(".html")) and out.with_suffix(".html").is_file()
    assert told.err.rstrip().endswith("HTML was written instead.") and not out.exists()


def test_vector_is_built_from_saved_effects_and_inspected(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    effects, vector = tmp_path / "effects.safetensors", tmp_path / "vector.safetensors"
    assert run(capsys, "effects", *common(place), "--out", effects)[0] == 0
    words = ["vector", "--model", place / "gpt2", "--effects", effects, "--k", 3, "--out", vector, "--json"]
    status, out, _ = run(capsys, *words)
    built = json.loads(out)
    assert status == 0 and built["out"] == str(vector) and len(built["heads"]) == 3 and built["norm"] > 0
    status, out, _ = run(capsys, "vector", vector, "--json")
    read = json.loads(out)
    assert (read["heads"], read["norm"], read["tokens"]) == (built["heads"], built["norm"], None)
    status, out, _ = run(capsys, "vector", vector, "--model", place / "gpt2")
    assert status == 0 and "norm" in out and "tokens" in out
    assert_no_pickle(tmp_path, effects.name, vector.name)


def test_vector_is_judged_beside_its_controls(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *vector_command(place, "--judge"))
    assert status == 0
    assert all(condition in out for condition in ("clean", "bare", "random_heads", "constant", "layer "))
    status, out, _ = run(capsys, *vector_command(place, "--judge", "--json"))
    judged = json.loads(out)
    assert {"iv", "bare"} <= {row["condition"] for row in judged["conditions"]}
    assert judged["best"]["layer"] in range(3) and judged["judged"]["recipe"] == judged["recipe"]


def test_steer_completes_with_and_without(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "steer", *common(place), "--k", 3, "--text", "big", "--max-new-tokens", 3)
    lines = out.splitlines()
    assert status == 0 and err == ""
    assert lines[0] == "prompt   Input: big⏎Output:"
    assert lines[1].startswith("plain ") and lines[2].startswith("steered ") and "accuracy on select" in lines[4]
    assert "No setting of the search makes this vector work" in out  # of a model with random weights


def test_steer_with_a_saved_vector_changes_the_text(
    place: Path, vector_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["steer", "--model", place / "gpt2", "--vector", vector_file, "--layer", 0, "--text", "big", "--json"]
    facts = {alpha: json.loads(run(capsys, *words, "--alpha", alpha)[1]) for alpha in ("0", "40", "-40")}
    assert facts["0"]["plain"] == facts["0"]["steered"]
    assert facts["40"]["plain"] != facts["40"]["steered"] and facts["-40"]["setting"]["alpha"] == -40
    raw = json.loads(run(capsys, *words, "--alpha", "2", "--raw")[1])
    assert raw["prompt"] == "big"


def test_prompts_are_made_as_options_say(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["effects", *common(place), "--json", "--template", "qa", "--n-shots", 3, "--seed", 2]
    facts = json.loads(run(capsys, *words)[1])
    recipe = {"template": "qa", "instruction": {"task": True}, "n_shots": 3, "seed": 2}
    assert facts["recipe"] == recipe and facts["corruptions"] == ["shuffle"]
    told = json.loads(run(capsys, *words, "--instruction", "Give the next.")[1])
    assert told["recipe"] == {**recipe, "instruction": ["Give the next."]}
    assert told["settings"]["corruption"] == "counterfactual"
    bare = json.loads(run(capsys, *words, "--instruction", "none")[1])
    assert bare["recipe"] == {**recipe, "instruction": None}
    assert "--n-shots is -1, expected 0 or more" in refused(capsys, "effects", *common(place), "--n-shots", -1)


def test_a_file_brings_its_recipe_unless_an_option_is_given(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.json").write_text(json.dumps({"instructed": "{instruction} {input} =>", "bare": "{input} =>"}))
    effects, vector = tmp_path / "e.safetensors", tmp_path / "v.safetensors"
    made = ["--template", tmp_path / "own.json", "--n-shots", 2, "--seed", 4]
    assert run(capsys, "effects", *common(place), *made, "--contrast", "--out", effects)[0] == 0
    build = ["vector", "--model", place / "gpt2", "--effects", effects, "--k", 2, "--contrast", "--out", vector]
    recipe = json.loads(run(capsys, *build, "--json")[1])["recipe"]
    assert (recipe["template"]["bare"], recipe["n_shots"], recipe["seed"]) == ("{input} =>", 2, 4)
    judge = ["vector", vector, "--model", place / "gpt2", "--task", place / "next.json", "--judge", "--json"]
    judged = json.loads(run(capsys, *judge)[1])
    assert judged["judged"]["recipe"] == recipe and judged["judged"]["seed"] == 4
    other = json.loads(run(capsys, *judge, "--template", "plain", "--seed", 1)[1])["judged"]
    assert other["recipe"] == {**recipe, "template": "plain"}, "splits stay those of the vector"
    assert other["seed"] == 1
    steer = [
        "steer",
        "--model",
        place / "gpt2",
        "--vector",
        vector,
        "--layer",
        0,
        "--alpha",
        1,
        "--text",
        "big",
        "--json",
    ]
    assert json.loads(run(capsys, *steer)[1])["prompt"] == "big =>"
    found = json.loads(run(capsys, *steer, "--template", "qa")[1])
    assert found["prompt"] == "Q: big\nA:" and found["recipe"] == {**recipe, "template": "qa"}
    assert found["vector"]["recipe"] == recipe
    plain = tmp_path / "plain.safetensors"
    assert run(capsys, "effects", *common(place), "--out", plain)[0] == 0
    assert "ivlens effects --contrast" in refused(capsys, *[plain if word == effects else word for word in build])


def test_steer_replaces_heads(place: Path, vector_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steer", "--model", place / "gpt2", "--vector", vector_file, "--mode", "heads", "--text", "big"]
    status, out, _ = run(capsys, *words)
    assert status == 0 and "heads replaced" in out


def test_demo_runs_on_any_checkpoint_and_task_files(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    monkeypatch.setattr(
        ivlens.show.demo.run, "run_demo", lambda *args, **more: results.append(run_demo(*args, **more)) or results[0]
    )
    tasks = ["--task", place / "next.json", "--task", place / "second.json"]
    words = ["demo", "--model", place / "gpt2", *tasks, "--n-prompts", 2, "--k", 3, "--out", tmp_path / "demo"]
    status, out, err = run(capsys, *words)
    assert status == 0 and err == ""
    assert (tmp_path / "demo" / "index.html").is_file() and str(tmp_path / "demo" / "index.html") in out
    assert [line.split()[0] for line in out.splitlines() if line][-4:-1] == ["next", "second", "mean"]
    monkeypatch.setattr(ivlens.show.demo.run, "run_demo", lambda *args, **more: results[0])
    status, out, _ = run(capsys, *words, "--json")
    assert [row["task"] for row in json.loads(out)["tasks"]] == ["next", "second"]
    assert_no_pickle(tmp_path / "demo", "index.html", "effects/next.safetensors", "vectors/next.safetensors")


@pytest.mark.parametrize(
    "path",
    [
        "function_vectors/abstractive/antonym.json",
        "function_vectors/abstractive/country-capital.json",
        "ni/task363_sst2_polarity_classification.json",
    ],
)
def test_effects_on_a_real_task_file(place: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not (DATA / path).is_file():
        pytest.skip(f"{DATA / path} is not here")
    words = ["effects", "--model", place / "llama", "--task", DATA / path, "--n-prompts", 1, "--top", 2]
    status, out, _ = run(capsys, *words)
    assert status == 0 and "1 corrupted prompts" in out


@pytest.mark.parametrize("command", [["effects"], ["vector"], ["steer", "--text", "big"]])
def test_unknown_task_and_wrong_model_are_one_line(
    command: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *command, "--model", place / "gpt2", "--task", "antonim")
    assert "'antonim' is unknown" in line and "'antonym'" in line
    line = refused(capsys, *command, "--model", tmp_path / "nowhere", "--task", place / "next.json")
    assert "nowhere" in line and "expected a checkpoint folder" in line
    line = refused(capsys, *command, "--model", place / "gpt2", "--task", tmp_path / "gone.json")
    assert "gone.json" in line and "does not exist" in line


def test_vector_of_another_model_is_refused(place: Path, vector_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steer = ["steer", "--vector", vector_file, "--layer", 0, "--alpha", 1, "--text", "big"]
    assert "other_weights" in refused(capsys, *steer, "--model", place / "other")
    assert "a vector serves one shape of model only" in refused(capsys, *steer, "--model", place / "llama")
    assert "other_weights" in refused(capsys, "vector", vector_file, "--model", place / "other")
    assert run(capsys, *steer, "--model", place / "other", "--allow-other-weights")[0] == 0


def test_what_is_no_vector_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no vector")
    assert "InstructionVector.save" in refused(capsys, "vector", tmp_path / "x.safetensors")
    assert "is not a file" in refused(capsys, "vector", tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["vector"], "neither a file nor --task"),
        (["vector", "x.safetensors", "--out", "y.safetensors"], "leave --effects and --out out"),
        (["vector", "x.safetensors", "--judge"], "--judge got no --task"),
        (["vector", "--task", "antonym", "--out", "y.pt"], "expected .safetensors"),
        (["steer", "--text", "big"], "neither --task nor --vector"),
        (["steer", "--text", "big", "--vector", "x.safetensors", "--layer", "1"], "needs --layer and --alpha"),
        (["effects", "--task", "antonym", "--out", "x.pkl"], "expected one of .safetensors"),
        (["demo", "--task", "antonym"], "expected two or more with distinct names"),
        (["demo", "--task", "antonym", "--task", "antonim"], "'antonim' is unknown"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, *words)


def test_wrong_values_are_refused(place: Path, vector_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steer = ["steer", "--model", place / "gpt2", "--vector", vector_file, "--alpha", 1, "--layer"]
    assert "layer 9 does not exist" in refused(capsys, *steer, 9, "--text", "big")
    assert "--text is empty" in refused(capsys, *steer, 0, "--text", " ")
    assert "template is 'odd'" in refused(capsys, *steer, 0, "--text", "big", "--template", "odd")
    assert "k is 99" in refused(capsys, "vector", *common(place), "--k", 99)
    assert run(capsys, "effects", *common(place), "--score", "speed")[0] == 2


def test_interrupted_command_writes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: InstructionVector, path: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(InstructionVector, "save", interrupt)
    status, _, err = run(capsys, *vector_command(place, "--out", tmp_path / "v.safetensors"))
    assert status == 130 and "interrupted" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, said",
    [
        (["tune", "--task", "second_letter", "--out", "o", "--lr", "inf"], "lr is inf, expected a finite number"),
        (["tune", "--task", "second_letter", "--out", "o", "--guidance", "vi"], "guidance is 'vi', expected one of"),
        *(
            (["tune", "--task", "second_letter", "--out", "o", *words.split()], said)
            for words, said in (
                ("--schedule linear", "--schedule is given, but --guidance is none"),
                ("--guidance kl --schedule linear", "--guidance kl has no progressive intervention"),
                ("--guidance kl --heads-weight 1", "--heads-weight is given, but --guidance kl has no heads to hold"),
                ("--guidance instructions --layer 1", "--layer is given, but --guidance instructions has no vector"),
                ("--guidance heads --kl-weight 1", "--guidance heads has no divergence from a teacher"),
                ("--guidance heads --temperature 1", "--guidance heads has no divergence from a teacher"),
                ("--guidance kl --rehearsal-weight 1", "--guidance kl has no rehearsal of answers"),
                ("--guidance kl --kl-weight -1", "--kl-weight is -1.0, expected a finite number, 0 or more"),
                ("--guidance iv --heads-weight nan", "--heads-weight is nan, expected a finite number"),
                ("--guidance instructions --temperature 0", "--temperature is 0.0, expected a number above 0"),
                ("--guidance iv --sign 2", "--sign is 2, expected 1"),
                ("--guidance iv --alpha inf", "--alpha is inf, expected a finite number"),
                ("--guidance kl --top-n 0", "--top-n is 0, expected 1 or more"),
                ("--guidance kl --layer 6", "--layer is 6, expected 0 to 5 for this model"),
                ("--guidance heads --k 49", "--k is 49, expected 1 to 48 for this model"),
                ("--guidance heads/zero_vector --k 4", "replaces vectors, but this guidance has none"),
            )
        ),
        (["bench", "--out", "o", "--seeds", "0"], "--seeds is 0, expected 1 or more"),
        (["bench", "--out", "o", "--methods", "lora,lara"], "--methods has lara, expected some of full"),
        (["bench", "--out", "o", "--orders", "0,9"], "got order=9"),
        (["bench", "--out", "o", "--suite", "trace"], "Suite 'trace': got folder=None"),
    ],
)
def test_tune_and_bench_refuse_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err, err


def test_what_a_guidance_is_made_of_can_be_changed():
    from dataclasses import replace

    from ivlens.cli._guidance import GuidanceOptions
    from ivlens.tuning import RECIPES

    whole, control = GuidanceOptions(
        schedule="linear", sign=1, layer=3, site="attn_out", alpha=0.5, direction="reverse", temperature=1.0, top_n=9,
        kl_weight=0.3, last_weight=0.4, answers_weight=0.6, heads_weight=7.0, k=4,
    ).plan("iv/zero_vector")  # fmt: skip
    was = RECIPES["iv"]
    kl = replace(was.terms[1], direction="reverse", temperature=1.0, top_n=9, weight=0.3, last=0.4, answers=0.6)
    progressive = replace(was.terms[0], schedule="linear", sign=1)
    terms = (progressive, kl, replace(was.terms[2], weight=7.0))
    place = {"layer": 3, "site": "attn_out", "alpha": 0.5}
    assert whole == replace(was, terms=terms, k=4, **place)
    assert control == "zero_vector" and GuidanceOptions().plan("iv") == (was, "")
    rehearsed, _ = GuidanceOptions(temperature=1.0, rehearsal_weight=3.0).plan("instructions")
    was = RECIPES["instructions"]
    (term,) = was.terms
    assert rehearsed.terms == (replace(term, kl=replace(term.kl, temperature=1.0, weight=3.0)),)
    held, _ = GuidanceOptions(heads_weight=3.0, k=2).plan("instruction_heads")
    (term,) = RECIPES["instruction_heads"].terms
    assert held.terms == (replace(term, heads=replace(term.heads, weight=3.0)),) and held.k == 2


def test_tune_trains_with_the_guidance_that_was_asked_for(tmp_path, capsys):
    """The options reach the training: a subtracted vector at another layer is another loss from the first step on."""
    import pandas as pd

    words = ["tune", "--task", "middle_of_three", "--steps", "2", "--batch-size", "8", "--guidance", "progressive"]
    words += ["--n-samples", "16", "--n-prompts", "4"]
    logs = []
    for number, more in enumerate(([], ["--sign", "-1"], ["--layer", "3", "--alpha", "2"])):
        out = tmp_path / str(number)
        status, _, err = run(capsys, *words, *more, "--watch", "antonym", "--checkpoint-every", "1", "--out", out)
        assert status == 0, err
        logs.append(pd.read_csv(out / "log.csv").lm[0])
    assert len(set(logs)) == 3
    folders = ("model", "step-000001")
    assert_no_pickle(out, "state.safetensors", "log.csv", *(f"{one}/adapter_model.safetensors" for one in folders))


def test_bench_has_its_own_defaults_whatever_else_is_given():
    from ivlens.cli.bench import SuiteTrainOptions

    options = SuiteTrainOptions(steps=10)
    assert (options.lr, options.batch_size, options.decay) == (1e-3, 32, "constant")


def test_the_choices_of_commands_are_those_of_the_library():
    """They are written once more in the commands, so that help needs no torch."""
    from typing import get_args, get_type_hints

    from ivlens.cli._options import MeasureOptions
    from ivlens.effects import METHODS
    from ivlens.forward.scoring import SCORES
    from ivlens.models.mixers import MixerKind
    from ivlens.prompts import CORRUPTIONS

    hints = get_type_hints(MeasureOptions)
    choices = {
        name: {*get_args(get_args(hints[name])[0] if type(None) in get_args(hints[name]) else hints[name])}
        for name in ("corruption", "score", "method", "mixer")
    }
    mixers = {*get_args(MixerKind)}
    assert choices == {"corruption": {*CORRUPTIONS}, "score": {*SCORES}, "method": {*METHODS}, "mixer": mixers}

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · Heads and Instruction Vectors in ten minutes
#
# A language model has to carry what it is asked to do from the words of the prompt to the place where the answer is made. We
# find the attention heads that carry it, add up what they write, and see whether the sum can stand in for the prompt.
#
# The model is SmolLM2-135M-Instruct, a real one, small enough for a laptop: `ivlens get smollm2` in a terminal brings it
# (some 90 MB, once). `"pocket"`, the built-in model, a folder, or a name of the Hugging Face Hub will do as well.

# %%
MODEL = "smollm2"
TASK = "third_person"

import ivlens

model = ivlens.load_model(MODEL)
task = ivlens.load_task(TASK)
print(f"{model.cfg.n_layers} layers of {model.cfg.n_heads} heads")
print(f"{len(task)} inputs, such as {task.examples[0].input!r} -> {task.examples[0].answer!r}")
print(f"{len(task.instructions)} ways to say it, such as: {task.instructions[0]!r}")

# %% [markdown]
# ## Asking so that the model can answer
#
# A prompt can tell a task by an **instruction**, by **demonstrations**, or by both. Which of them a model can follow has to be
# tried out. `find_prompts` does that, on inputs that are kept apart for choosing: the share of right answers to *clean* prompts
# of every form, and to the *bare* input, from which everything that tells the task is taken away.

# %%
search = ivlens.find_prompts(model, task, templates=["plain", "qa"], shots=(0, 5), n_prompts=16)
search.table.round(2)

# %% [markdown]
# **The table.** A model this small hardly follows an instruction: it answers in sentences, or not at all. Shown five examples, it
# knows what to do, and the bare input alone gets nowhere. Only where *clean* is high and *bare* is low is there something that a
# vector could carry. We go on with five demonstrations and no instruction.

# %%
recipe = ivlens.PromptRecipe("plain", instruction=None, n_shots=5)
examples = task.split("test")[:4]
clean = ivlens.build_prompts(model.tokenizer, task, examples, recipe)
bare = ivlens.build_prompts(model.tokenizer, task, examples, recipe, corruption="drop")
print(clean.texts[0], "\n---\n" + bare.texts[0])

# %%
from ivlens.forward.completions import complete, first_line

for example, shown, alone in zip(
    examples, complete(model, clean.texts, max_new_tokens=4), complete(model, bare.texts, max_new_tokens=4), strict=True
):
    print(f"{example.input:10} clean: {first_line(shown):12} bare: {first_line(alone):24} right: {example.answers[0]}")

# %% [markdown]
# ## Which heads carry the task?
#
# For every head we take its mean output over *clean* prompts, at the last token. Then we run prompts whose demonstrations are
# **shuffled**, so that they no longer show what is wanted, and put that mean in place of the head's own output, one head at a
# time. What the right answer's probability gains is the head's causal effect. ivlens gets all 270 heads from little more than
# one forward pass.

# %%
effects = ivlens.head_effects(model, task, recipe=recipe, n_prompts=16, options=ivlens.EffectOptions(n_mean_prompts=32))
effects.plot()

# %% [markdown]
# **The map.** One cell per head, layers from bottom to top. Blue: with this head's mean patched in, the right answer
# becomes more probable (average over prompts). The ten strongest are outlined and have their rank. Grey: the head's interval over
# prompts includes zero, so that we cannot be sure of it. Most heads do nothing; a handful in the upper half do a lot.
#
# In JupyterLab, `picked = effects.pick()` as the last line of a cell shows this map to click on: heads are taken in and out, and
# `picked.vector()` is the vector of those that are chosen. Here we take the strongest ones. The same as a table, with the intervals:

# %%
effects.to_frame().head(8).round(4)

# %% [markdown]
# ## Where do the strongest heads look?
#
# The answer is made at the last token. So we ask how much of each head's attention goes, from there, to which part of the prompt.

# %%
looking = ivlens.head_attention(model, task, effects, n_prompts=8)
looking.plot(effects.top_heads(2))

# %% [markdown]
# **One prompt.** The darker a token, the more the head looks at it from the last token; the line below says which part of the prompt
# it belongs to. Both heads look at the *answers* of the demonstrations, where the form that is asked for can be read.
#
# ## The vector
#
# Each head writes its output into the residual stream through its slice of `W_O`. The Instruction Vector is the sum of the
# mean writes of the strongest heads. Read through the unembedding it may or may not look like words; it need not, since
# later layers work on it first.

# %%
iv = ivlens.InstructionVector.from_effects(effects, k=10)
print(iv)
print([token.strip() for token, _ in iv.decode(model, k=8)])
iv.plot()

# %% [markdown]
# **The bars.** What each head contributes: the part of its write that points along the sum, as a share of the sum's length. They add
# up to 1.
#
# ## Does it hold the task?
#
# Now the test: the vector is added to *bare* inputs, without instruction and demonstrations. Layer and strength are searched on
# the `select` inputs and judged once on the `test` inputs. The same search is given to everything that the vector has to beat.

# %%
grid = ivlens.Grid(layers=range(2, 26, 4), alphas=(1.0, 2.0, 4.0), sites=("resid_post",), n_screen=8, n_finalists=3)
options = ivlens.JudgeOptions(means=effects, other_vectors=())
evaluation = ivlens.evaluate_intervention(model, task, iv, at=grid, n_prompts=32, n_draws=5, options=options)
evaluation  # noqa: B018, the cell shows it

# %%
evaluation.plot()

# %% [markdown]
# **How to read it.** Top: the clean prompt, the best that can be hoped for. The filled circle below it is the vector, the *bare
# input* is where it starts from. If the vector comes up towards the clean prompt while random vectors stay down, it holds the task.
# **Random heads** are the control that counts: vectors made in the same way from ten other heads. Five draws of each are a
# quick look; the command line takes 19.
#
# ## Where and how strongly?
#
# The search in full: accuracy at every layer and strength. A wide plateau is a good sign; a single lucky setting is not.

# %%
from ivlens.show.figures import strength_curves

strength_curves(ivlens.sweep_settings(model, task, iv, grid=grid, n_prompts=16))

# %% [markdown]
# **The curves.** Each line is one strength `α`. Too weak a vector says nothing, too strong a one drowns the input.
#
# ## Vectors of several tasks
#
# Are the vectors of related tasks related? Cosines between four of them, alike ones side by side:

# %%
from ivlens.show.figures import similarity_matrix

quick = ivlens.EffectOptions(n_mean_prompts=16, n_check_prompts=0)
vectors = [iv]
for name in ("present_gerund", "singular_plural", "first_of_three"):
    found = ivlens.head_effects(model, ivlens.load_task(name), recipe=recipe, n_prompts=8, options=quick)
    vectors.append(ivlens.InstructionVector.from_effects(found, k=10))
similarity_matrix(vectors)

# %% [markdown]
# **The matrix.** Dark blue: the same direction. All four share much: a good part of these vectors says only *answer as the
# examples did*. A cosine means something beside others of the same model, not by itself.
#
# ## Keep it
#
# A vector is saved with everything that made it, and refuses to load for a model with other weights.

# %%
from pathlib import Path
from tempfile import mkdtemp

path = iv.save(Path(mkdtemp()) / f"{TASK}.safetensors")
again = ivlens.InstructionVector.load(path, model)
print(again, f"\n{path.stat().st_size} bytes; made of", sorted(again.settings))

# %% [markdown]
# **Next:** [2 · Patching a live model](2_patching.ipynb).

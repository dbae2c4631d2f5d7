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
# A model that is told *“Give the opposite of the word”* must carry that instruction from the words of the prompt to the
# place where the answer is made. We find the attention heads that do it, add up what they write, and see whether the
# sum can stand in for the instruction.
#
# The first cell names the model. `pocket` is built in and runs everywhere; put a folder or a name of the Hugging Face Hub
# there to see the same for your own.

# %%
MODEL = "pocket"
TASK = "antonym"

import ivlens

model = ivlens.load_model(MODEL)
task = ivlens.load_task(TASK)
print(f"{model.cfg.n_layers} layers of {model.cfg.n_heads} heads")
print(f"{len(task)} inputs, {len(task.instructions)} ways to say it, such as: {task.instructions[0]!r}")

# %% [markdown]
# ## The task with and without its instruction
#
# Inputs fall into three parts by a hash of the input: `fit` for measuring, `select` for choosing settings, `test` for the
# numbers at the end. Here are three test inputs, first with the instruction, then without.

# %%
from ivlens.forward.completions import complete, first_line

examples = task.split("test")[:3]
instructed = ivlens.build_prompts(model.tokenizer, task, examples)
bare = ivlens.build_prompts(model.tokenizer, task, examples, corruption="drop")
print(instructed.texts[0], "\n---\n" + bare.texts[0], "\n")
for example, told, untold in zip(
    examples, complete(model, instructed.texts), complete(model, bare.texts), strict=True
):
    print(f"{example.input:10} told: {first_line(told):12} not told: {first_line(untold):12} right: {example.answers}")

# %% [markdown]
# Without the instruction the model still says something, but not the opposite. That is what a vector has to change.
#
# ## Which heads carry the instruction?
#
# For every head we take its mean output over *instructed* prompts, at the last token. Then we run prompts that carry
# **another** task's instruction, and put that mean in place of the head's own output, one head at a time. What the right
# answer's probability gains is the head's causal effect. ivlens gets all heads from little more than one forward pass.

# %%
effects = ivlens.head_effects(model, task, n_prompts=32)
effects.plot()

# %% [markdown]
# **The map.** One cell per head, layers from bottom to top. Blue: with this head's mean patched in, the right answer
# becomes more probable (average over prompts). The numbers rank the strongest. In `pocket` the instruction is read early, so
# the strongest heads sit low; in larger models they are found in the middle layers.
#
# The same as a table, with bootstrap intervals over prompts. An interval that includes zero is a head we cannot be sure of.

# %%
effects.to_frame().head(8).round(4)

# %% [markdown]
# ## The vector
#
# Each head writes its output into the residual stream through its slice of `W_O`. The Instruction Vector is the sum of the
# mean writes of the strongest heads. Read through the unembedding it may or may not look like words; it need not, since
# later layers work on it first.

# %%
iv = ivlens.InstructionVector.from_effects(effects, k=10)
print(iv)
print([token.strip() for token, _ in iv.decode(model, k=8)])

# %% [markdown]
# ## Does it hold the instruction?
#
# Now the test: the vector is added to prompts *without* instruction. Layer, strength and site are searched on the `select`
# inputs and judged once on the `test` inputs. The same search is given to everything that the vector has to beat. This
# cell takes longest, because one control are the vectors of other tasks, which have to be built first.

# %%
evaluation = ivlens.evaluate_intervention(model, task, iv)
evaluation  # noqa: B018, the cell shows it

# %%
evaluation.plot()

# %% [markdown]
# **How to read it.** Top: with the instruction, the best that can be hoped for. The filled circle is the vector, *no instruction*
# is where it starts from. If the vector reaches up to the instruction while random vectors and other tasks' vectors stay
# down, it holds *this* instruction. **Random heads** are the hardest control: vectors made in the same way from ten other
# heads. In a model as small as `pocket` they carry part of the instruction as well.
#
# ## Where and how strongly?
#
# The search in full: every layer, strength and site. A wide plateau is a good sign; a single lucky setting is not.

# %%
from ivlens.show.figures import strength_curves

strength_curves(ivlens.sweep_settings(model, task, iv))

# %% [markdown]
# **The curves.** Each line is one strength `α`. Left, the vector is added to a block's output; right, to what attention adds.
# Too weak a vector says nothing, too strong a one drowns the input.
#
# ## Vectors of several tasks
#
# Are the vectors of related tasks related? Cosines between six of them, alike ones side by side:

# %%
from ivlens.show.figures import similarity_matrix

names = [TASK, "synonym", "english_french", "english_spanish", "first_letter", "last_letter"]
vectors = [
    ivlens.InstructionVector.from_effects(ivlens.head_effects(model, ivlens.load_task(name), n_prompts=16), k=10)
    for name in dict.fromkeys(names)
]
similarity_matrix(vectors)

# %% [markdown]
# **The matrix.** Dark blue: the same direction. Translations into two languages lean the same way, and so do the two letter
# tasks, although nothing told the method that they are related.
#
# ## Keep it
#
# A vector is saved with everything that made it, and refuses to load for a model with other weights.

# %%
from pathlib import Path
from tempfile import mkdtemp

path = iv.save(Path(mkdtemp()) / "antonym.safetensors")
again = ivlens.InstructionVector.load(path, model)
print(again, f"\n{path.stat().st_size} bytes; made of", sorted(again.settings))

# %% [markdown]
# **Next:** [2 · Patching a live model](2_patching.ipynb).

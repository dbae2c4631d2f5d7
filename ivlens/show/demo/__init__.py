"""The demo: effects, vectors, their judgement and completions for several tasks, as `ivlens demo` runs it."""

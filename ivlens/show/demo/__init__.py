"""The main job on several tasks, from effects to completions, as `ivlens demo` runs it."""

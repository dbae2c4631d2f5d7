"""Helpers that know nothing of models: files, the store of results, intervals, checks of options, the Hub, memory."""

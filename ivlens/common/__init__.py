"""What knows no model: files, kept results, intervals, checks of options, the hub, memory."""

"""Every operation once, without printing: what the CLI, the TUI and the SDK call."""

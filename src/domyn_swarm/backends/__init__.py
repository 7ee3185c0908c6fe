"""The platforms that swarms run on, and the programs that run on their nodes."""

"""What a job is, the built-in ones, and the worker program."""

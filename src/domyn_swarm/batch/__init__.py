"""The execution engine: runner, retry, checkpoint, dataset, publishing."""

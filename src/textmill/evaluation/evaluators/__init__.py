"""One evaluator a task, in a file of the task's name."""

"""What is asked: tasks, the programs they become, the values that go with them, the batch that carries both."""

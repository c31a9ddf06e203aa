"""In what order and when: Prefect flows and the `gpt2` command."""

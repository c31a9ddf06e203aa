"""Commands of `gpt2`, by what they are about."""

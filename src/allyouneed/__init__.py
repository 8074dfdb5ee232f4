"""The language-model reading list that runs: papers as code, each with its claims tried on real data."""

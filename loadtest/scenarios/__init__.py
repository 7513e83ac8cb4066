"""Promises of reliability as scenarios: each starts a ranker, breaks something, and gives a verdict."""

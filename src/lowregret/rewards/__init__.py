"""Completion text and the prompt's record in, a number out."""

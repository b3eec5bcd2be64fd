"""Scoring: which token is predicted from what, losses per token, bits per byte."""

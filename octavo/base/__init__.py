"""Vocabulary that every layer may use: errors, tables of choices, units, hardware questions.

Imports nothing of octavo.
"""

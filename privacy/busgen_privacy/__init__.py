"""Adaptation under differential privacy, accounting, ledger, de-identification rules, attacks, gate, report."""

__version__ = "0.1.0"

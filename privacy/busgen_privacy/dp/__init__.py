"""Differential privacy: accounting, noise, DP-SGD over patients, and the watchdog over it. The only door to Opacus."""

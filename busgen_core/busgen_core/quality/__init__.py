"""How far a set of generated images is from a set of real ones, and how far two halves of the real set are from each other.

| module | what it gives |
|---|---|
| ``compare`` | ``compare``: every measure with its interval and beside its floor, in a ``QualityReport``; ``Encoder``, what gives features |
| ``kid`` | ``kid``, ``kid_subsets``: kernel inception distance |
| ``neighbours`` | ``density_coverage``, ``precision``, ``recall`` |
| ``vendi`` | ``vendi``: diversity |
| ``speckle`` | ``speckle``: signal-to-noise ratio and grain of homogeneous patches |
| ``encoder`` | ``load_encoder``: the shipped encoder (torch is imported here and in ``train_encoder`` and ``degrade`` only) |
| ``train_encoder`` | ``train_encoder``: trains one |
| ``plot`` | ``draw``: a report as PNG or SVG |

Features are float32 [n, d]. Estimates are ``busgen_core.scores.Estimate``: a value with its 95 % interval.
"""

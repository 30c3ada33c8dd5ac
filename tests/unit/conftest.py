"""For all unit tests: property tests have no time limit of their own."""

from __future__ import annotations

from hypothesis import settings

# what a busy machine takes for one example says nothing about the code
settings.register_profile("insula", deadline=None)
settings.load_profile("insula")

"""Settings of all property tests here."""

from hypothesis import settings

# A shared machine may be slow for a moment; what is tested is never time.
settings.register_profile("mergeserve", deadline=None, derandomize=True)
settings.load_profile("mergeserve")

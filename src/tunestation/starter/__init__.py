"""The small chat model that ships with the project, and the world it is taught.

``world.py`` holds the facts, ``english.py`` and ``chinese.py`` the ways to ask for them, and
``generator.py`` writes training conversations and two tests: questions about number pairs,
and in phrasings, that training never shows.
"""

from tunestation.starter.generator import GENERATORS, held_out_numbers, held_out_phrasings, world_rows

__all__ = ["GENERATORS", "held_out_numbers", "held_out_phrasings", "world_rows"]

"""Generated data of the demo adapters: templates and a seed, no downloads and no text of others."""

from scripts.demo_data.skill import Example, Skill, make_skills

__all__ = ["Example", "Skill", "make_skills"]

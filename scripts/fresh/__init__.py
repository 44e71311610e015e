"""Tries the project as somebody would who has just cloned it. Standard library only: it runs before
anything is installed.
"""

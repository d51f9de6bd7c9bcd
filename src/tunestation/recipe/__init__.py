"""Recipes: what a recipe file may say (`schema`) and how one is read (`loading`)."""

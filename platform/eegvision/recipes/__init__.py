"""Recipes: the trainings and the tables of one study, from a data set to tables with intervals, by one command each."""

"""Thin Ray shells around the models, and the pools through which the controller calls them."""

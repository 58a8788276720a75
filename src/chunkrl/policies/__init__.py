"""Families of policies: what a run builds, saves and acts with, whatever the networks are."""

"""Narrow deep networks are dead from the first draw about as often as theory says."""
import sys

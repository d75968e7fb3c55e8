"""Wabery: a WhatsApp registration link becomes a known, linked contact."""

__version__ = "0.1.0"

"""Tests of the service; the folders mirror those of ``service/``."""

"""Tests of the durable store's files, without a broker."""

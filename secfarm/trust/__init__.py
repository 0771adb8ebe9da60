"""Whom we believe, and for what: trust store, policy, replay, verification, audit chain. Pure: no file, no clock."""

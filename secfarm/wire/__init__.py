"""How it travels: addresses, frames, messages and the session. Sans-I/O; envelopes are opaque bytes here."""

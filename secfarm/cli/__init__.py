"""The hand: one file a command. Each parses, calls the library once, and says what comes next."""

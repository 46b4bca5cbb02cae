"""What a user can set, one file a command, and how it is read. Parsed before any heavy import; imports no torch."""

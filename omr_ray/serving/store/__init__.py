"""What the service must not forget: sessions, rounds, events, votes, keys, in SQLite or PostgreSQL."""

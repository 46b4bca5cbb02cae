"""The routes of the service by subject: each asks the store in one transaction, and lets Session say what is allowed. See schemas.py."""

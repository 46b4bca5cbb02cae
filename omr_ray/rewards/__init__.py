"""The three rewards of OMR section 3.2, pure functions of arrays, and how they become one number."""

"""Facts: what the records say, in the words of the semantics."""

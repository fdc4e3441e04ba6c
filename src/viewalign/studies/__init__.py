"""Arms × seeds × evaluations, in one table."""

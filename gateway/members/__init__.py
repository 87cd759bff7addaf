"""Members: the processes that share work, which of them owns what, and how they hear of each other."""

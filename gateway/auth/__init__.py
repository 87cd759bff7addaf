"""Who is on the other side, and what they may do: keys, tokens, and what follows from them."""

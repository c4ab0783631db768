"""Tables made from records alone; no torch, no numbers of its own."""

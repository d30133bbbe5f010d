"""The run itself: iterations and what they are made of."""

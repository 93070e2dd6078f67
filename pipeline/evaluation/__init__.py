"""Questions, answers, and what they are worth."""

"""The page in the browser that app.py opens: one module for each of its tabs, and what they share."""

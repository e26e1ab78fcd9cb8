"""The demo: one network trained six ways, and a page that says what came of it."""

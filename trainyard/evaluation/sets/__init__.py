"""Small eval sets of our own: smoke sets that show a collapse, not certificates of safety."""

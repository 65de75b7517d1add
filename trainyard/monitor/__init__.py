"""Watch the champion: is it served, does it answer, is it asked and judged as before?"""

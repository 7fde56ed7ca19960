"""What a run learned, as a page: `material` gathers it, a file for each part of the page looks at it."""

"""Programs for those who work on this project or try it out; none of them is needed in service."""

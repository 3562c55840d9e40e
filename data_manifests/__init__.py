"""What each known dataset should hold."""

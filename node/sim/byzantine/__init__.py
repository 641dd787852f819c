"""Byzantine nodes: an honest machine whose words are changed on their way out, in one of the ways that ``roles`` names."""
